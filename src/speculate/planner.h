/* planner: what a pass costs, how often a kind of candidate is right, and what a second is worth.
 *
 * The aim is the most tokens per second in the long run. By the renewal-reward argument (Dinkelbach's method for
 * ratios) the best plan at each step is the one with the largest  expected tokens - rate * seconds,  where rate is
 * the tokens per second reached lately. Every decision here (one more row? one more draft pass?) is that one
 * comparison; nothing is to be tuned. */
#ifndef UST_SPECULATE_PLANNER_H
#define UST_SPECULATE_PLANNER_H

#include "speculate/cost.h"
#include "speculate/tree.h"

enum { UST_TARGET_ROWS = 64, UST_DRAFT_ROWS = 24, UST_CANDIDATES = 6, UST_GAPS = 10, UST_ORDERS = 5, UST_KNOWN = 5 };

/* The kinds of candidates that have a record each: a cell. */
enum {
  UST_DRAFT_CELLS = 2 * UST_CANDIDATES * UST_GAPS,
  UST_SOURCE_CELLS = UST_ORDERS * UST_CANDIDATES * UST_GAPS,
  UST_TEXT_CELLS = 2 * UST_SOURCE_CELLS
};

/* A draft's candidate; `known`: the text stage proposed it, too. */
static inline int ust_draft_cell(bool known, int rank, int gap) {
  return ((int)known * UST_CANDIDATES + rank) * UST_GAPS + gap;
}
/* A text stage's candidate, from the file or the text; order 0: learned from logits. */
static inline int ust_text_cell(bool file, int order, int rank, int gap) {
  return (int)file * UST_SOURCE_CELLS + (order * UST_CANDIDATES + rank) * UST_GAPS + gap;
}
static inline int ust_cell_rank(int cell) {
  return cell / UST_GAPS % UST_CANDIDATES;
}
static inline bool ust_cell_of_file(int text_cell) {
  return text_cell >= UST_SOURCE_CELLS;
}

/* How often candidates of one kind were the target's choice. Old observations fade, and the prior with them. */
typedef struct ust_record {
  float trials, hits;
  float prior, weight; /* what is believed before anything is seen, and for how many observations it counts */
} ust_record;

/* `scale` corrects the prior of a kind hardly seen yet by how its stage does on the whole. */
float ust_record_chance(const ust_record *record, float scale);
void ust_record_observe(ust_record *record, bool hit);
/* What is known of a stage that was not asked fades, so that one given up is tried again one day. */
void ust_record_fade(ust_record *record);

typedef struct ust_planner {
  ust_shape shape; /* a fixed one for experiments: nothing is weighed then */
  ust_cost target_cost, draft_cost;
  double tokens, seconds;          /* lately; their ratio is the rate */
  double row;                      /* tokens that one more row of the target's passes cost lately; 0: none yet */
  int single;                      /* target passes of one row since the last of more */
  ust_record draft_covers;         /* the target's choice was among the draft's candidates */
  ust_record evaluated[UST_KNOWN]; /* it was in the pass, after a token the draft evaluated; [what was known before] */
  ust_record text_covers;          /* the same of the text stage's */
  ust_record unconfirmed;          /* the text stage proposed it, the draft evaluated its parent and did not */
  ust_record draft_hits[UST_DRAFT_CELLS]; /* the candidate was right; by ust_draft_cell() */
  ust_record text_hits[UST_TEXT_CELLS];   /* the same; by ust_text_cell() */
} ust_planner;

void ust_planner_init(ust_planner *planner);
/* Whether, after `count` rows of `expected` tokens together, any number of rows up to `most` could be worth more than
 * `best`: each further row brings at most `reach`. price[n]: what n rows cost, in tokens. */
bool ust_planner_hopes(const double *price, int count, int most, double expected, double reach, double best);
/* Tokens a second is worth. */
double ust_planner_rate(const ust_planner *planner);
/* Tokens that a candidate's row in the target's pass costs: those of the last row there, which it can replace, or the
 * price of another one. */
double ust_planner_row(const ust_planner *planner);
/* What a step's target pass was planned to be. */
typedef struct ust_plan {
  int rows;
  double expected;    /* candidates that will be right */
  double first, last; /* the reach of the likeliest candidate (0: there was none), and of the last that got a row */
} ust_plan;

/* What n rows of the target's pass cost, in tokens, in price[n] for n up to UST_TARGET_ROWS. */
void ust_planner_prices(const ust_planner *planner, double price[UST_TARGET_ROWS + 1]);
/* Learns what a row there is worth. Where a row has long cost more than the likeliest candidate (`drafts`: or one that
 * a draft was not asked for) would bring, its price is believed to fall, the faster the more that is. */
void ust_planner_observe_plan(ust_planner *planner, const ust_plan *plan, const double *price, bool drafts);
void ust_planner_observe_step(ust_planner *planner, int tokens, double seconds);
/* How a stage does against what was expected of it: 1 as expected, 0 never right. */
float ust_planner_scale(const ust_record *covers);
/* The class of a score gap. */
int ust_planner_gap(float gap);
/* The class of what the text stage's candidates after a node are thought to cover together. */
int ust_planner_known(float chance);

#endif
