/* details: what `bench` and `run --explain` ask of a session beyond the public API: experiments, how candidates of
 * each stage, rank and depth fared, where the time went, a report of every step. Plain data the decode loop fills;
 * the functions are src/understudy.c's. */
#ifndef UST_DETAILS_H
#define UST_DETAILS_H

#include "base/base.h"

/* Experiments: the same loop with another policy or with fewer stages. The text is that of every mode. */
typedef enum ust_variant {
  UST_VARIANT_NONE,
  UST_VARIANT_CHAIN,       /* the tree is a chain of fixed length */
  UST_VARIANT_TREE,        /* the tree has a fixed shape */
  UST_VARIANT_NO_CONTEXT,  /* without the text so far */
  UST_VARIANT_INDEPENDENT, /* drafts rank with noise of another seed than the target's */
  UST_VARIANT_CONTEXT,     /* the text so far alone: no draft, no file */
  UST_VARIANT_LIKELIEST,   /* drafts rank without noise */
  UST_VARIANTS
} ust_variant;

enum { UST_DETAIL_ORIGINS = 4, UST_DETAIL_RANKS = 8, UST_DETAIL_DEPTHS = 32, UST_DETAIL_ROWS = 65 };

typedef struct ust_tally {
  uint64_t proposed, accepted;
} ust_tally;

/* Sums since the session's statistics were reset. */
typedef struct ust_details {
  ust_tally depth[UST_DETAIL_DEPTHS];                   /* candidates the target scored, by depth in the tree */
  ust_tally rank[UST_DETAIL_ORIGINS][UST_DETAIL_RANKS]; /* by origin and rank: a stage's candidates where the target
                                                           chose, scored or not, and how often it was they */
  uint64_t rows[UST_DETAIL_ROWS];                       /* target passes by number of rows */
  double row_seconds[UST_DETAIL_ROWS];                  /* that they took */
  double text_seconds;                                  /* the text stage's look-ups */
  double choice_seconds;                                /* the target's choices from its logits */
} ust_details;

typedef struct ust_step_report {
  int rows_from[UST_DETAIL_ORIGINS]; /* the target pass's rows by the stage that proposed them; [0]: the root */
  int draft_passes, draft_rows;
  int tokens, tokens_from[UST_DETAIL_ORIGINS]; /* committed, by origin */
  double expected_tokens, predicted_seconds;   /* what the planner thought */
  double seconds;
} ust_step_report;

typedef void (*ust_step_fn)(void *user, const ust_step_report *report);

/* understudy_session_create() for an experiment: all the engine has, less what the variant leaves out. */
understudy_status ust_session_create_variant(const understudy_engine *engine, ust_variant variant,
                                             const understudy_sampling *sampling, understudy_session **session,
                                             understudy_error *err);
/* Lives as long as the session. */
const ust_details *ust_session_details(const understudy_session *session);
/* `step` is called after every step; NULL: no more. */
void ust_session_watch(understudy_session *session, ust_step_fn step, void *user);

#endif
