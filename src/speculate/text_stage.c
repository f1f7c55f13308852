/* The bottom stage: candidates from the text so far, from the target's logits and from the n-gram file, ranked with
 * the noise of the position they would stand at, as the target will rank its own. */
#include <math.h>

#include "speculate/stages.h"

/* Orders candidates by log-probability / T plus noise, as if log-probabilities were logits; fills gaps[] (to the second
 * for the first, to the first for the others). */
static void rank(ust_ngram_candidate *found, int count, const understudy_sampling *sampling, const ust_before *before,
                 float gaps[UST_CANDIDATES]) {
  float score[UST_CANDIDATES];
  bool penalises = ust_sampling_penalises(sampling);
  uint64_t position = (uint64_t)(before->count + before->depth);
  float heat = sampling->temperature > 0 ? sampling->temperature : 1;
  for (int i = 0; i < count; i++) {
    float own = logf(UST_MAX(found[i].probability, 1e-9f));
    int times = penalises ? ust_before_times(before, found[i].token) : 0;
    if (times) own = ust_sample_penalise(sampling, own, times);
    own /= heat;
    if (sampling->temperature > 0) own += ust_sample_noise(sampling->seed, position, found[i].token);
    ust_ngram_candidate candidate = found[i];
    int at = i;
    for (; at > 0 && score[at - 1] < own; at--) {
      score[at] = score[at - 1];
      found[at] = found[at - 1];
    }
    score[at] = own;
    found[at] = candidate;
  }
  for (int i = 0; i < count; i++) gaps[i] = i ? score[0] - score[i] : count > 1 ? score[0] - score[1] : HUGE_VALF;
}

/* Appends those of `more` that are not yet in found[]. */
static int merge(const ust_ngram_candidate *more, int more_count, ust_ngram_candidate *found, int count) {
  for (int i = 0; i < more_count && count < UST_CANDIDATES; i++) {
    bool seen = false;
    for (int j = 0; j < count; j++) seen = seen || found[j].token == more[i].token;
    if (!seen) found[count++] = more[i];
  }
  return count;
}

/* The sources in order of trust: suffixes of the text, what the target thought of last, the file. */
static int gather(const ust_text_stage *stage, const ust_history *history, const int32_t *path, int depth,
                  ust_ngram_candidate found[UST_CANDIDATES]) {
  int count = stage->suffixes ? ust_suffixes_candidates(stage->suffixes, path, depth, UST_CANDIDATES / 2, found) : 0;
  int32_t tail[2] = {-1, -1}; /* the two tokens before the candidate */
  for (int i = 0; i < 2; i++) {
    int back = 1 - i; /* 0: the last token */
    int at = depth - 1 - back;
    if (at >= 0)
      tail[i] = path[at];
    else if (history->count + at >= 0)
      tail[i] = history->tokens[history->count + at];
  }
  ust_ngram_candidate more[UST_CANDIDATES];
  if (stage->learned)
    count = merge(more, ust_learned_candidates(stage->learned, tail[0], tail[1], UST_LEARNED, more), found, count);
  if (stage->ngram)
    count = merge(more, ust_ngram_candidates(stage->ngram, tail[0], tail[1], UST_CANDIDATES, more), found, count);
  return count;
}

static void propose(const ust_text_stage *stage, ust_tree *tree, int node, const ust_history *history,
                    const understudy_sampling *sampling) {
  int32_t path[UST_TREE_DEEPEST];
  ust_ngram_candidate found[UST_CANDIDATES];
  float gaps[UST_CANDIDATES];
  float scale = ust_planner_scale(&stage->planner->text_covers);
  int depth = ust_tree_path(tree, node, path);
  int count = gather(stage, history, path, depth, found);
  ust_before before = {.text = history->tokens, .count = history->count, .path = path, .depth = depth};
  rank(found, count, sampling, &before, gaps);
  for (int i = 0; i < count; i++) {
    bool file = found[i].source == UST_SOURCE_FILE;
    int cell = ust_text_cell(file, UST_MIN(found[i].order, UST_ORDERS - 1), i, ust_planner_gap(gaps[i]));
    int child = ust_tree_child(tree, node, found[i].token);
    if (child < 0)
      child = ust_tree_add(tree, node, found[i].token, ust_record_chance(&stage->planner->text_hits[cell], scale),
                           file ? UNDERSTUDY_FROM_NGRAM : UNDERSTUDY_FROM_CONTEXT);
    if (child < 0) return;
    tree->nodes[child].text_cell = (int16_t)cell;
  }
}

void ust_text_propose(ust_text_stage *stage, ust_tree *tree, int node, const ust_history *history,
                      const understudy_sampling *sampling) {
  if (tree->nodes[node].text_done) return;
  tree->nodes[node].text_done = true;
  uint64_t start = ust_clock_ns();
  propose(stage, tree, node, history, sampling);
  stage->seconds += ust_seconds_since(start);
}
