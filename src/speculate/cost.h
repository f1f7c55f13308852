/* cost: what a pass costs by its number of rows. Measured when a session is created, within a fraction of a second;
 * kept in a small file per machine, model and threads, with which later measurements are averaged; corrected by every
 * pass while decoding. */
#ifndef UST_SPECULATE_COST_H
#define UST_SPECULATE_COST_H

#include "model/model.h"

enum { UST_COST_POINTS = 10 };

/* Seconds of a pass by rows: measured at some row counts, straight lines between, times a drift learned from the
 * passes since. */
typedef struct ust_cost {
  int rows[UST_COST_POINTS]; /* ascending */
  double seconds[UST_COST_POINTS];
  int points;
  double drift;
} ust_cost;

double ust_cost_of(const ust_cost *cost, int rows);
/* Adds or replaces a point. */
void ust_cost_add(ust_cost *cost, int rows, double seconds);
/* A pass took so long: all costs drift with it, those of like row counts a little more. One row is the curve's unit:
 * its passes say how fast the machine is, not what rows cost beside it. */
void ust_cost_observe(ust_cost *cost, int rows, double seconds);
/* Costs not observed are slowly believed to be lower, so that what was given up for its price is tried again: those of
 * any pass, or, where passes of one row are all there is, those of further rows, by `share` of
 * what they cost beyond one. */
void ust_cost_fade(ust_cost *cost);
void ust_cost_fade_rows(ust_cost *cost, double share);

/* ---- measuring ---- */

/* Seconds that a pass of so many rows takes, found out by doing it or a part of it. */
typedef double (*ust_pass_fn)(void *user, int rows);

/* Times passes of the row counts order[0 ... count-1], the first of them 1, those above `most` left out: two of them,
 * then all in turns as far as `budget` seconds should last. Of the measurements of a count the smallest counts, since
 * other work only makes a pass slower, and as much as what was known before, scaled to what one row takes now. */
void ust_cost_measure(ust_cost *cost, const int *order, int count, int most, ust_pass_fn pass, void *user,
                      double budget);

/* ---- the file ---- */

enum { UST_COST_KEY = 512 };

/* What the costs of `use` depend on, as text. */
void ust_cost_key(const ust_model *model, const char *isa, const char *use, char key[UST_COST_KEY]);
/* Fills the curve from the file for `key` in `directory` (NULL: none). False, and no curve, when there is no file or
 * anything in it is not as it was written. */
bool ust_cost_load(ust_cost *cost, const char *directory, const char *key);
/* Writes it; that it cannot be written is no error. */
void ust_cost_save(const ust_cost *cost, const char *directory, const char *key);

#endif
