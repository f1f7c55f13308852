/* stages: what proposes candidates. A stage grows the tree under given nodes and is told what was committed.
 *
 * The chain is  target <- draft stage <- text stage.  The text stage (suffixes of the text so far, what the target
 * thought of last after the same two tokens, the n-gram file) answers in microseconds; the draft stage is a model
 * whose own tree the text stage drafts, so that one draft pass evaluates several levels. */
#ifndef UST_SPECULATE_STAGES_H
#define UST_SPECULATE_STAGES_H

#include "model/model.h"
#include "ngram/ngram.h"
#include "sample/sample.h"
#include "speculate/learned.h"
#include "speculate/planner.h"
#include "speculate/tree.h"

/* The committed text, root included: tokens[0 … count-1]. */
typedef struct ust_history {
  int32_t *tokens;
  int count;
} ust_history;

/* ---- text stage ---- */

typedef struct ust_text_stage {
  const ust_ngram *ngram; /* NULL: none */
  ust_suffixes *suffixes; /* NULL: none */
  ust_learned *learned;   /* NULL: none */
  ust_planner *planner;
  double seconds; /* that look-ups took */
} ust_text_stage;

/* Adds the children it knows of under `node`, once. */
void ust_text_propose(ust_text_stage *stage, ust_tree *tree, int node, const ust_history *history,
                      const understudy_sampling *sampling);

/* ---- draft stage ---- */

/* What passes have cost. */
typedef struct ust_work {
  uint64_t passes, rows;
  double seconds, bytes, flop;
  double predicted; /* seconds the planner expected of passes over trees */
} ust_work;

typedef struct ust_draft_stage {
  ust_timeline *timeline;
  const ust_model *model;
  ust_planner *planner;
  ust_sampler **samplers; /* [threads] */
  float *logits;
  ust_ranked ranked[UST_DRAFT_ROWS][UST_CANDIDATES]; /* of the last pass's rows */
  int found[UST_DRAFT_ROWS];
  int pending; /* tokens of text before the root that the step's first pass evaluated, not committed yet */
  ust_work work;
} ust_draft_stage;

understudy_status ust_draft_create(const ust_model *model, int context, ust_planner *planner, ust_draft_stage *stage,
                                   understudy_error *err);
void ust_draft_free(ust_draft_stage *stage);
/* A pass over a chain of `rows` tokens, ranking included, as if for nothing; the timeline is empty before and after. */
void ust_draft_rehearse(ust_draft_stage *stage, const understudy_sampling *sampling, int rows);
/* One pass over the nodes most worth evaluating, so that the tree may get `deepest` levels; `text` (NULL: none) drafts
 * below them. The text must fit the draft's context. Returns false when no pass is worth its time. */
bool ust_draft_grow(ust_draft_stage *stage, ust_text_stage *text, ust_tree *tree, const ust_history *history,
                    int deepest, const understudy_sampling *sampling);
/* The nodes path[0 … count-1] of the tree (path[0] the root) were committed. */
void ust_draft_commit(ust_draft_stage *stage, const ust_tree *tree, const int32_t *path, int count);
void ust_draft_reset(ust_draft_stage *stage);

#endif
