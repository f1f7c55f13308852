/* The draft model as a stage. Its timeline holds the committed text up to some point; a pass evaluates what text
 * is missing, then the tree nodes most worth it, and turns each row's logits into children of that node. */
#include <math.h>
#include <omp.h>

#include "speculate/stages.h"

enum { CATCH_UP = 64 }; /* missing text beyond this goes through passes of its own */

static const float NEGLIGIBLE = 1e-3f; /* a reach not worth keeping a candidate for */

understudy_status ust_draft_create(const ust_model *model, int context, ust_planner *planner, ust_draft_stage *stage,
                                   understudy_error *err) {
  *stage = (ust_draft_stage){.model = model, .planner = planner};
  int threads = ust_model_threads(model);
  size_t bytes = (size_t)UST_DRAFT_ROWS * ust_model_logit_stride(model) * sizeof(float);
  understudy_status status = ust_timeline_create(model, UST_MIN(context, ust_model_config(model)->context),
                                                 UST_TREE_NODES, &stage->timeline, err);
  stage->logits = ust_alloc(bytes);
  stage->samplers = ust_alloc((size_t)threads * sizeof *stage->samplers);
  if (status == UNDERSTUDY_OK && (!stage->logits || !stage->samplers))
    status = ust_error_memory(err, bytes, "the draft's logits");
  for (int i = 0; i < threads && status == UNDERSTUDY_OK; i++)
    status = ust_sampler_create(ust_model_config(model)->vocabulary, &stage->samplers[i], err);
  if (status != UNDERSTUDY_OK) ust_draft_free(stage);
  return status;
}

void ust_draft_free(ust_draft_stage *stage) {
  for (int i = 0; stage->samplers && i < ust_model_threads(stage->model); i++) ust_sampler_free(stage->samplers[i]);
  ust_free(stage->samplers);
  ust_free(stage->logits);
  ust_timeline_free(stage->timeline);
  *stage = (ust_draft_stage){0};
}

void ust_draft_reset(ust_draft_stage *stage) {
  ust_timeline_truncate(stage->timeline, 0);
  stage->pending = 0;
}

/* Books a pass over `rows` rows, the last of which saw `keys` keys; `wanted` of them gave logits. */
static void account(ust_draft_stage *stage, int rows, int wanted, int keys, uint64_t start) {
  stage->work.passes++;
  stage->work.rows += (uint64_t)rows;
  stage->work.seconds += ust_seconds_since(start);
  stage->work.bytes += (double)ust_model_weight_bytes(stage->model) + (double)ust_model_kv_bytes(stage->model) * keys;
  stage->work.flop += ust_model_pass_flop(stage->model, rows, wanted, keys);
}

static void pass(ust_draft_stage *stage, const int32_t *tokens, const int32_t *parents, int rows, const bool *want) {
  uint64_t start = ust_clock_ns();
  ust_model_forward(stage->timeline, tokens, parents, rows, want, stage->logits);
  int wanted = want ? 0 : rows;
  for (int i = 0; want && i < rows; i++) wanted += want[i];
  account(stage, rows, wanted, ust_timeline_committed(stage->timeline) + ust_timeline_nodes(stage->timeline), start);
}

/* Ranks the logits of `count` rows, whose next tokens would stand behind before[]. */
static void rank(ust_draft_stage *stage, const understudy_sampling *sampling, const ust_before *before, int count) {
  uint64_t start = ust_clock_ns();
  size_t stride = ust_model_logit_stride(stage->model);
#pragma omp parallel for schedule(dynamic) num_threads(ust_model_threads(stage->model))
  for (int i = 0; i < count; i++) {
    ust_sampler *sampler = stage->samplers[omp_get_thread_num()];
    const float *logits = ust_sampler_penalised(sampler, sampling, stage->logits + (size_t)i * stride, &before[i]);
    stage->found[i] = ust_sampler_rank(sampler, sampling, logits, (uint64_t)(before[i].count + before[i].depth),
                                       UST_CANDIDATES, stage->ranked[i]);
  }
  stage->work.seconds += ust_seconds_since(start);
}

void ust_draft_rehearse(ust_draft_stage *stage, const understudy_sampling *sampling, int rows) {
  int32_t tokens[UST_DRAFT_ROWS] = {0}, parents[UST_DRAFT_ROWS];
  ust_before before[UST_DRAFT_ROWS] = {0};
  for (int i = 0; i < rows; i++) parents[i] = i - 1;
  pass(stage, tokens, parents, rows, NULL);
  rank(stage, sampling, before, rows);
  ust_timeline_truncate(stage->timeline, 0);
}

/* The text before history->count - 1 enters the timeline. */
static void catch_up(ust_draft_stage *stage, const ust_history *history) {
  for (int have; (have = ust_timeline_committed(stage->timeline)) < history->count - 1;) {
    uint64_t start = ust_clock_ns();
    int rows = UST_MIN(UST_TREE_NODES, history->count - 1 - have);
    ust_timeline_append(stage->timeline, history->tokens + have, rows, NULL);
    account(stage, rows, 0, have + rows, start);
  }
}

/* The unevaluated node of largest reach whose parent is evaluated or about to be; -1: none. */
static int best_open(const ust_tree *tree, const bool *chosen, int deepest, const ust_shape *shape) {
  int best = -1;
  float reach = -1;
  for (int i = 0; i < tree->count; i++) {
    const ust_node *n = &tree->nodes[i];
    if (n->reach <= reach || n->draft_node >= 0 || chosen[i] || n->depth > deepest) continue;
    if (n->parent >= 0 && tree->nodes[n->parent].draft_node < 0 && !chosen[n->parent]) continue;
    if (shape->length && (n->depth == shape->length || !ust_tree_fits(tree, i, shape))) continue;
    best = i;
    reach = n->reach;
  }
  return best;
}

/* What the text stage's candidates after a node cover. */
static int known_after(const ust_tree *tree, int node) {
  float chance = 0;
  for (int child = tree->nodes[node].first_child; child >= 0; child = tree->nodes[child].next_sibling)
    chance += tree->nodes[child].chance;
  return ust_planner_known(chance);
}

/* Tokens that a candidate of this reach and what look-ups find behind it bring, less what their rows in the target's
 * pass bring otherwise. */
static double worth_of(const ust_planner *planner, const ust_text_stage *text, double reach, double row) {
  double chance = text ? (double)ust_record_chance(&planner->text_covers, 1) : 0, tokens = 0;
  for (int depth = 0; depth < UST_TREE_DEEPEST && reach > row; depth++, reach *= chance) tokens += reach - row;
  return tokens;
}

/* What evaluating a node brings: a candidate as good as those after evaluated nodes of its kind have been, instead of
 * the text stage's. */
static double gain_of(const ust_planner *planner, const ust_text_stage *text, const ust_tree *tree, int node,
                      double row) {
  const ust_node *n = &tree->nodes[node];
  double known = 0, chance = (double)ust_record_chance(&planner->evaluated[n->known], 1);
  for (int child = n->first_child; child >= 0; child = tree->nodes[child].next_sibling)
    known += worth_of(planner, text, (double)tree->nodes[child].reach, row);
  return worth_of(planner, text, (double)n->reach * chance, row) - known;
}

/* Chooses nodes best first while each is worth its row; returns how many, or 0 when the pass is not worth it. The text
 * stage proposes what follows each of them, so that one pass evaluates several levels. Of `behind` tokens of text to be
 * evaluated before, no more than CATCH_UP are charged to the pass: later passes gain from them as much. */
static int choose(ust_draft_stage *stage, ust_text_stage *text, ust_tree *tree, const ust_history *history, int deepest,
                  const understudy_sampling *sampling, int behind, int32_t *chosen_nodes) {
  const ust_planner *planner = stage->planner;
  bool chosen[UST_TREE_CAPACITY] = {false}, fixed = planner->shape.length > 0;
  double rate = ust_planner_rate(planner), row = ust_planner_row(planner), price[UST_DRAFT_ROWS + 1];
  double gain = 0, best_value = 0;
  int charged = UST_MIN(behind, CATCH_UP);
  int most = UST_MIN(UST_DRAFT_ROWS, UST_TREE_NODES - ust_timeline_nodes(stage->timeline) - charged);
  int count = 0, best = 0;
  deepest = UST_MIN(deepest - 1, ust_model_config(stage->model)->context - history->count); /* of those evaluated */
  for (int rows = 1; rows <= most; rows++) price[rows] = rate * ust_cost_of(&planner->draft_cost, charged + rows);
  while (count < most) {
    int node = best_open(tree, chosen, deepest, &planner->shape);
    if (node < 0) break;
    ust_node *n = &tree->nodes[node];
    double most_gain = worth_of(planner, text, (double)n->reach, row);
    if (!fixed && !ust_planner_hopes(price, count, most, gain, most_gain, best_value)) break;
    chosen[node] = true;
    chosen_nodes[count++] = node;
    if (text) ust_text_propose(text, tree, node, history, sampling);
    n->known = (int8_t)known_after(tree, node);
    gain += gain_of(planner, text, tree, node, row);
    double value = gain - price[count];
    if (value > best_value || fixed) {
      best_value = value;
      best = count;
    }
  }
  return best;
}

static void add_children(ust_draft_stage *stage, ust_tree *tree, int node, const ust_ranked *ranked, int count) {
  float scale = ust_planner_scale(&stage->planner->draft_covers);
  for (int i = 0; i < count; i++) {
    float gap = i ? ranked[0].score - ranked[i].score : count > 1 ? ranked[0].score - ranked[1].score : HUGE_VALF;
    int child = ust_tree_child(tree, node, ranked[i].token);
    int cell = ust_draft_cell(child >= 0, i, ust_planner_gap(gap));
    float chance = ust_record_chance(&stage->planner->draft_hits[cell], scale);
    if (child < 0 && i && tree->nodes[node].reach * chance < NEGLIGIBLE) continue;
    if (child < 0) child = ust_tree_add(tree, node, ranked[i].token, 0, UNDERSTUDY_FROM_DRAFT);
    if (child < 0) return;
    tree->nodes[child].draft_cell = (int16_t)cell;
    ust_tree_set_chance(tree, child, chance);
  }
  for (int child = tree->nodes[node].first_child; child >= 0; child = tree->nodes[child].next_sibling)
    if (tree->nodes[child].draft_cell < 0)
      ust_tree_set_chance(tree, child, ust_record_chance(&stage->planner->unconfirmed, 1));
}

bool ust_draft_grow(ust_draft_stage *stage, ust_text_stage *text, ust_tree *tree, const ust_history *history,
                    int deepest, const understudy_sampling *sampling) {
  int32_t nodes[UST_DRAFT_ROWS], tokens[UST_DRAFT_ROWS + CATCH_UP], parents[UST_DRAFT_ROWS + CATCH_UP];
  int32_t paths[UST_DRAFT_ROWS][UST_TREE_DEEPEST];
  ust_before before[UST_DRAFT_ROWS];
  bool want[UST_DRAFT_ROWS + CATCH_UP];
  bool first = tree->nodes[0].draft_node < 0;
  int behind = first ? history->count - 1 - ust_timeline_committed(stage->timeline) : 0;
  int missing = behind <= CATCH_UP ? behind : 0; /* of the text, that goes through the pass */
  int count = choose(stage, text, tree, history, deepest, sampling, behind, nodes);
  if (count == 0) {
    if (first) {
      ust_record_fade(&stage->planner->draft_covers);
      for (int known = 0; known < UST_KNOWN; known++) ust_record_fade(&stage->planner->evaluated[known]);
      ust_cost_fade(&stage->planner->draft_cost);
    }
    return false;
  }
  if (behind > CATCH_UP) {
    stage->work.predicted += ust_cost_of(&stage->planner->draft_cost, behind);
    catch_up(stage, history);
  }
  uint64_t start = ust_clock_ns();
  int base = ust_timeline_nodes(stage->timeline), rows = 0;
  for (int i = 0; i < missing; i++, rows++) {
    tokens[rows] = history->tokens[history->count - 1 - missing + i];
    parents[rows] = i - 1;
    want[rows] = false;
  }
  for (int i = 0; i < count; i++, rows++) {
    ust_node *n = &tree->nodes[nodes[i]];
    n->draft_node = base + rows;
    tokens[rows] = n->token;
    parents[rows] = n->parent >= 0 ? tree->nodes[n->parent].draft_node : missing - 1;
    want[rows] = true;
    before[i] = (ust_before){.text = history->tokens,
                             .count = history->count,
                             .path = paths[i],
                             .depth = ust_tree_path(tree, nodes[i], paths[i])};
  }
  if (first) stage->pending = missing;
  pass(stage, tokens, parents, rows, want);
  rank(stage, sampling, before, count);
  for (int i = 0; i < count; i++) add_children(stage, tree, nodes[i], stage->ranked[i], stage->found[i]);
  stage->work.predicted += ust_cost_of(&stage->planner->draft_cost, rows);
  ust_cost_observe(&stage->planner->draft_cost, rows, ust_seconds_since(start));
  return true;
}

void ust_draft_commit(ust_draft_stage *stage, const ust_tree *tree, const int32_t *path, int count) {
  int32_t nodes[CATCH_UP + UST_TREE_DEEPEST + 1];
  int length = 0;
  if (count > 0 && tree->nodes[0].draft_node >= 0) {
    for (; length < stage->pending; length++) nodes[length] = length;
    for (int i = 0; i < count && tree->nodes[path[i]].draft_node >= 0; i++)
      nodes[length++] = tree->nodes[path[i]].draft_node;
  }
  ust_timeline_commit(stage->timeline, nodes, length);
}
