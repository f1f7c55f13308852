/* What one forward pass of a model costs, by the rows it carries and the tokens before them. */
#include "measure/measure.h"

enum { MAX_ROWS = 64, RUNS = 3, LONG_CONTEXT = 900 };

static const int row_counts[] = {1, 2, 4, 8, 16, 32, 64};
enum { ROW_COUNTS = sizeof row_counts / sizeof row_counts[0] };

/* Rows form a binary tree, about the shape of a speculative one. */
static uint64_t time_pass(ust_timeline *timeline, int vocabulary, int rows, float *logits) {
  int32_t tokens[MAX_ROWS], parents[MAX_ROWS];
  for (int i = 0; i < rows; i++) {
    tokens[i] = i % vocabulary;
    parents[i] = (i + 1) / 2 - 1;
  }
  uint64_t best = UINT64_MAX;
  for (int run = 0; run < RUNS; run++) {
    uint64_t begin = ust_clock_ns();
    ust_model_forward(timeline, tokens, parents, rows, NULL, logits);
    uint64_t time = ust_clock_ns() - begin;
    best = UST_MIN(best, time);
    ust_timeline_truncate(timeline, ust_timeline_committed(timeline));
  }
  return best;
}

/* Commits tokens until there are `context`. */
static void extend(ust_timeline *timeline, int context) {
  static const int32_t tokens[MAX_ROWS];
  while (ust_timeline_committed(timeline) < context)
    ust_timeline_append(timeline, tokens, UST_MIN(context - ust_timeline_committed(timeline), MAX_ROWS), NULL);
}

understudy_status ust_measure_passes(const ust_model *model, ust_pass_cost out[UST_PASS_COSTS], int *count,
                                     understudy_progress_fn progress, void *user, understudy_error *err) {
  *count = 0;
  int room = ust_model_config(model)->context, vocabulary = ust_model_config(model)->vocabulary;
  const int contexts[] = {UST_MIN(128, room / 2), UST_MIN(LONG_CONTEXT, room - MAX_ROWS)};
  ust_timeline *timeline;
  UST_TRY(ust_timeline_create(model, room, MAX_ROWS, &timeline, err));
  size_t logit_bytes = (size_t)MAX_ROWS * ust_model_logit_stride(model) * sizeof(float);
  float *logits = ust_alloc(logit_bytes);
  understudy_status status = logits ? UNDERSTUDY_OK : ust_error_memory(err, logit_bytes, "logits");
  for (int c = 0; c < 2 && status == UNDERSTUDY_OK; c++) {
    if (contexts[c] < 1 || (c && contexts[c] <= contexts[0])) continue;
    if (contexts[c] + 8 > room) continue; /* the tree is up to seven positions deep */
    extend(timeline, contexts[c]);
    for (int r = 0; r < ROW_COUNTS && status == UNDERSTUDY_OK; r++) {
      if (progress && progress(user, "measuring passes", (uint64_t)(c * ROW_COUNTS + r), 2 * ROW_COUNTS))
        status = ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped");
      else
        out[(*count)++] = (ust_pass_cost){row_counts[r], contexts[c],
                                          (double)time_pass(timeline, vocabulary, row_counts[r], logits) / 1e6};
    }
  }
  if (progress) progress(user, "measuring passes", 1, 1);
  ust_free(logits);
  ust_timeline_free(timeline);
  return status;
}
