/* The decode loop: grow a tree, one target pass over it, walk it by the target's own choices, commit. Plain
 * decoding is the tree of one node. */
#include <math.h>

#include "speculate/account.h"
#include "speculate/decode.h"
#include "speculate/stages.h"

struct ust_decoder {
  ust_decoder_options options;
  ust_timeline *timeline; /* holds history[0 … count-2]; the last token is the root of the next tree */
  ust_history history;
  ust_sampler *sampler;
  float *logits; /* [UST_TARGET_ROWS, stride] */
  ust_tree tree;
  ust_planner planner;
  ust_text_stage text;
  ust_draft_stage draft;
  understudy_sampling drafting; /* how drafts rank: like the target, but in experiments */
  understudy_stats stats;
  ust_details details;
  ust_step_report report;
  int rehearsed; /* the target's part that is timed next */
  bool unread;   /* a cancelled prompt left text that a model has yet to evaluate */
};

/* ---- life ---- */

/* There is a text stage when it has a source. */
static ust_text_stage *text_stage(ust_decoder *d) {
  return d->options.text || d->options.ngram ? &d->text : NULL;
}

static void set_drafting(ust_decoder *d) {
  d->drafting = d->options.sampling;
  if (d->options.noise == UST_NOISE_OTHER) d->drafting.seed ^= 0x9e3779b97f4a7c15u;
  if (d->options.noise == UST_NOISE_NONE) d->drafting.temperature = 0;
}

static understudy_status allocate(ust_decoder *d, understudy_error *err) {
  const ust_decoder_options *o = &d->options;
  size_t logits = (size_t)UST_TARGET_ROWS * ust_model_logit_stride(o->target) * sizeof(float);
  size_t history = (size_t)o->context * sizeof(int32_t);
  UST_TRY(ust_timeline_create(o->target, o->context, UST_TREE_NODES, &d->timeline, err));
  UST_TRY(ust_sampler_create(ust_model_config(o->target)->vocabulary, &d->sampler, err));
  d->logits = ust_alloc(logits);
  d->history.tokens = ust_alloc(history);
  if (!d->logits || !d->history.tokens) return ust_error_memory(err, logits + history, "a session");
  if (o->text) UST_TRY(ust_suffixes_create(o->context, &d->text.suffixes, err));
  if (o->text) UST_TRY(ust_learned_create(&d->text.learned, err));
  if (o->draft) UST_TRY(ust_draft_create(o->draft, o->context, &d->planner, &d->draft, err));
  return UNDERSTUDY_OK;
}

/* What a pass would take by the time of a part of it, of more weights than caches hold. */
static double time_target(void *user, int rows) {
  enum { PART = 32 << 20 };
  ust_decoder *d = user;
  uint64_t start = ust_clock_ns();
  uint64_t bytes = ust_model_rehearse(d->timeline, rows, PART, &d->rehearsed, d->logits);
  return ust_seconds_since(start) * (double)ust_model_weight_bytes(d->options.target) / (double)bytes;
}

static double time_draft(void *user, int rows) {
  ust_decoder *d = user;
  uint64_t start = ust_clock_ns();
  ust_draft_rehearse(&d->draft, &d->drafting, rows);
  return ust_seconds_since(start);
}

/* Fills a cost curve: timed now, for `budget` seconds, together with what the cache knows of this use of the model. */
static void find_cost(ust_decoder *d, ust_cost *cost, const ust_model *model, const char *use, const int *order,
                      int count, int most, ust_pass_fn pass, double budget) {
  const char *cache = d->options.cache;
  char key[UST_COST_KEY];
  *cost = (ust_cost){.drift = 1};
  if (cache) ust_cost_key(model, d->options.isa, use, key);
  if (cache) ust_cost_load(cost, cache, key);
  ust_cost_measure(cost, order, count, most, pass, d, budget);
  if (cache) ust_cost_save(cost, cache, key);
}

static void find_costs(ust_decoder *d) {
  static const int target_rows[] = {1, 8, 32, 16, UST_TARGET_ROWS, 4, 2, 6, 12, 48};
  static const int draft_rows[] = {1, 8, UST_DRAFT_ROWS, 16, 4};
  const ust_decoder_options *o = &d->options;
  find_cost(d, &d->planner.target_cost, o->target, "target", target_rows, UST_COST_POINTS, o->context, time_target,
            0.2);
  if (o->draft)
    find_cost(d, &d->planner.draft_cost, o->draft, d->drafting.temperature > 0 ? "draft, sampled" : "draft", draft_rows,
              5, ust_model_config(o->draft)->context, time_draft, 0.08);
  ust_decoder_reset_stats(d);
}

understudy_status ust_decoder_create(const ust_decoder_options *options, ust_decoder **decoder, understudy_error *err) {
  ust_decoder *d = ust_alloc(sizeof *d);
  if (!d) return ust_error_memory(err, sizeof *d, "a session");
  d->options = *options;
  set_drafting(d);
  ust_planner_init(&d->planner);
  d->planner.shape = options->shape;
  d->text = (ust_text_stage){.ngram = options->ngram, .planner = &d->planner};
  understudy_status status = allocate(d, err);
  if (status != UNDERSTUDY_OK) {
    ust_decoder_free(d);
    return status;
  }
  if (options->draft || text_stage(d)) find_costs(d);
  *decoder = d;
  return UNDERSTUDY_OK;
}

void ust_decoder_free(ust_decoder *d) {
  if (!d) return;
  if (d->draft.model) ust_draft_free(&d->draft);
  ust_suffixes_free(d->text.suffixes);
  ust_learned_free(d->text.learned);
  ust_timeline_free(d->timeline);
  ust_sampler_free(d->sampler);
  ust_free(d->logits);
  ust_free(d->history.tokens);
  ust_free(d);
}

void ust_decoder_reset(ust_decoder *d, const understudy_sampling *sampling) {
  if (sampling) d->options.sampling = *sampling;
  set_drafting(d);
  d->history.count = 0;
  d->unread = false;
  ust_timeline_truncate(d->timeline, 0);
  if (d->options.text) ust_suffixes_reset(d->text.suffixes);
  if (d->options.draft) ust_draft_reset(&d->draft);
}

ust_planner *ust_decoder_planner(ust_decoder *d) {
  return &d->planner;
}
int ust_decoder_count(const ust_decoder *d) {
  return d->history.count;
}

static void append(ust_decoder *d, int32_t token) {
  d->history.tokens[d->history.count++] = token;
  if (d->options.text) ust_suffixes_append(d->text.suffixes, token);
}

/* ---- prompt ---- */

/* Evaluation of the text by one model after the other. */
typedef struct reading {
  understudy_progress_fn progress;
  void *user;
  uint64_t done, total; /* tokens, of all models */
} reading;

/* Of the text, all but the last token. */
static int unread_tokens(const ust_timeline *timeline, const ust_history *history) {
  return history->count - 1 - ust_timeline_committed(timeline);
}

static understudy_status catch_up(ust_timeline *timeline, const ust_history *history, reading *r,
                                  understudy_error *err) {
  for (int left; (left = unread_tokens(timeline, history)) > 0;) {
    int rows = UST_MIN(UST_TREE_NODES, left);
    ust_timeline_append(timeline, history->tokens + ust_timeline_committed(timeline), rows, NULL);
    r->done += (uint64_t)rows;
    if (r->progress && r->progress(r->user, "prompt", r->done, r->total))
      return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "prompt: cancelled at %llu of %llu",
                       (unsigned long long)r->done, (unsigned long long)r->total);
  }
  return UNDERSTUDY_OK;
}

/* The draft can evaluate the whole text. */
static bool drafts(const ust_decoder *d) {
  return d->options.draft && d->history.count <= ust_model_config(d->options.draft)->context;
}

/* Brings both models' timelines up to the text. That work is not decoding's. */
static understudy_status read_text(ust_decoder *d, understudy_progress_fn progress, void *user, understudy_error *err) {
  uint64_t start = ust_clock_ns();
  reading r = {.progress = progress, .user = user, .total = (uint64_t)unread_tokens(d->timeline, &d->history)};
  if (drafts(d)) r.total += (uint64_t)unread_tokens(d->draft.timeline, &d->history);
  understudy_status status = catch_up(d->timeline, &d->history, &r, err);
  if (status == UNDERSTUDY_OK && drafts(d)) status = catch_up(d->draft.timeline, &d->history, &r, err);
  d->unread = status != UNDERSTUDY_OK;
  d->stats.prompt_seconds += ust_seconds_since(start);
  return status;
}

understudy_status ust_decoder_prompt(ust_decoder *d, const int32_t *tokens, int count, understudy_progress_fn progress,
                                     void *user, understudy_error *err) {
  assert(count <= d->options.context - d->history.count);
  for (int i = 0; i < count; i++) append(d, tokens[i]);
  return read_text(d, progress, user, err);
}

/* ---- one step ---- */

/* The node of largest reach outside the pass whose parent is in it; -1: none. */
static int best_leaf(const ust_tree *tree, int deepest, const ust_shape *shape) {
  int best = -1;
  float reach = -1;
  for (int i = 1; i < tree->count; i++) {
    const ust_node *n = &tree->nodes[i];
    if (n->reach <= reach || n->row >= 0 || n->depth > deepest || tree->nodes[n->parent].row < 0) continue;
    if (!ust_tree_fits(tree, i, shape)) continue;
    best = i;
    reach = n->reach;
  }
  return best;
}

/* Picks the rows of the target's pass best first: as many as make expected tokens - price largest. nodes[row] is the
 * tree node of a row, nodes[0] the root. */
static ust_plan pick_rows(ust_decoder *d, int deepest, const double *price, int32_t *nodes) {
  ust_tree *tree = &d->tree;
  ust_text_stage *text = text_stage(d);
  ust_plan best = {.rows = 1, .last = HUGE_VAL};
  bool fixed = d->planner.shape.length > 0;
  double expected = 0, best_value = -price[1];
  int count = 1;
  while (count < UST_TARGET_ROWS) {
    ust_node *above = &tree->nodes[nodes[count - 1]];
    if (text && above->draft_node < 0 && above->depth < deepest)
      ust_text_propose(text, tree, nodes[count - 1], &d->history, &d->drafting);
    int node = best_leaf(tree, deepest, &d->planner.shape);
    if (node < 0) break;
    double reach = (double)tree->nodes[node].reach;
    if (count == 1) best.first = reach;
    if (!fixed && !ust_planner_hopes(price, count, UST_TARGET_ROWS, expected, reach, best_value)) break;
    tree->nodes[node].row = count;
    nodes[count++] = node;
    expected += reach;
    double value = expected - price[count];
    if (value > best_value || fixed) {
      best_value = value;
      best = (ust_plan){.rows = count, .expected = expected, .first = best.first, .last = reach};
    }
  }
  for (int row = best.rows; row < count; row++) tree->nodes[nodes[row]].row = -1;
  return best;
}

/* Lets the stages grow the tree and picks the target's rows. Returns their number. */
static int plan(ust_decoder *d, int deepest, int32_t *nodes) {
  ust_tree *tree = &d->tree;
  ust_text_stage *text = text_stage(d);
  ust_tree_start(tree, d->history.tokens[d->history.count - 1]);
  tree->nodes[0].row = 0;
  nodes[0] = 0;
  ust_plan best = {.rows = 1};
  if (deepest > 0 && (text || drafts(d))) {
    while (drafts(d) && ust_draft_grow(&d->draft, text, tree, &d->history, deepest, &d->drafting)) {
    }
    double price[UST_TARGET_ROWS + 1];
    ust_planner_prices(&d->planner, price);
    best = pick_rows(d, deepest, price, nodes);
    ust_planner_observe_plan(&d->planner, &best, price, drafts(d));
  }
  d->report.expected_tokens += best.expected;
  d->report.predicted_seconds = ust_cost_of(&d->planner.target_cost, best.rows);
  return best.rows;
}

static void target_pass(ust_decoder *d, const int32_t *nodes, int rows) {
  int32_t tokens[UST_TARGET_ROWS], parents[UST_TARGET_ROWS];
  for (int row = 0; row < rows; row++) {
    const ust_node *n = &d->tree.nodes[nodes[row]];
    tokens[row] = n->token;
    parents[row] = n->parent < 0 ? -1 : d->tree.nodes[n->parent].row;
  }
  uint64_t start = ust_clock_ns();
  ust_model_forward(d->timeline, tokens, parents, rows, NULL, d->logits);
  double seconds = ust_seconds_since(start);
  ust_account_pass(&d->details, &d->report, &d->tree, nodes, rows, seconds);
  const ust_model *target = d->options.target;
  int keys = ust_timeline_committed(d->timeline) + rows;
  d->stats.target_passes++;
  d->stats.target_rows += (uint64_t)rows;
  d->stats.target_seconds += seconds;
  d->stats.bytes += (double)ust_model_weight_bytes(target) + (double)ust_model_kv_bytes(target) * keys;
  d->stats.flop += ust_model_pass_flop(target, rows, rows, keys);
  ust_cost_observe(&d->planner.target_cost, rows, seconds);
}

/* Remembers what the target thinks likeliest after `node`. */
static void remember(ust_decoder *d, int node) {
  static const understudy_sampling greedy = {.top_p = 1};
  const ust_node *n = &d->tree.nodes[node];
  int before_root = d->history.count - 2;
  int32_t before = n->parent >= 0     ? d->tree.nodes[n->parent].token
                   : before_root >= 0 ? d->history.tokens[before_root]
                                      : -1;
  ust_ranked top[UST_LEARNED];
  const float *logits = d->logits + (size_t)n->row * ust_model_logit_stride(d->options.target);
  int count = ust_sampler_rank(d->sampler, &greedy, logits, 0, UST_LEARNED, top);
  ust_learned_add(d->text.learned, before, n->token, top, count);
}

/* Every candidate proposed after `node` was right or wrong: the stages' records learn it. */
static void learn(ust_decoder *d, int node, int32_t choice) {
  const ust_tree *tree = &d->tree;
  bool draft_covered = false, text_covered = false, passed = false, evaluated = tree->nodes[node].draft_node >= 0;
  for (int child = tree->nodes[node].first_child; child >= 0; child = tree->nodes[child].next_sibling) {
    const ust_node *n = &tree->nodes[child];
    bool hit = n->token == choice;
    ust_account_candidate(&d->details, n, hit);
    if (evaluated && n->draft_cell < 0) ust_record_observe(&d->planner.unconfirmed, hit);
    if (n->text_cell >= 0) ust_record_observe(&d->planner.text_hits[n->text_cell], hit);
    if (n->draft_cell >= 0) ust_record_observe(&d->planner.draft_hits[n->draft_cell], hit);
    draft_covered = draft_covered || (hit && n->draft_cell >= 0);
    text_covered = text_covered || (hit && n->text_cell >= 0);
    passed = passed || (hit && n->row >= 0);
  }
  if (evaluated) ust_record_observe(&d->planner.draft_covers, draft_covered);
  if (evaluated) ust_record_observe(&d->planner.evaluated[tree->nodes[node].known], passed);
  if (tree->nodes[node].text_done) ust_record_observe(&d->planner.text_covers, text_covered);
}

/* The nodes the target agreed with, root first, what it chose after each of them, and who had proposed that. */
typedef struct walked {
  int32_t path[UST_TREE_DEEPEST + 1], tokens[UST_TREE_DEEPEST + 1];
  understudy_origin origins[UST_TREE_DEEPEST + 1];
  int count;
  bool end; /* the text ends with them */
} walked;

/* Follows the target's choices from the root, `limit` of them at most. */
static void walk(ust_decoder *d, int limit, walked *w) {
  size_t stride = ust_model_logit_stride(d->options.target);
  for (int node = 0; node >= 0 && w->count < limit;) {
    ust_ranked choice;
    uint64_t start = ust_clock_ns();
    const understudy_sampling *sampling = &d->options.sampling;
    ust_before before = {.text = d->history.tokens, .count = d->history.count, .path = w->tokens, .depth = w->count};
    const float *logits = d->logits + (size_t)d->tree.nodes[node].row * stride;
    logits = ust_sampler_penalised(d->sampler, sampling, logits, &before);
    ust_sampler_rank(d->sampler, sampling, logits, (uint64_t)(before.count + before.depth), 1, &choice);
    d->details.choice_seconds += ust_seconds_since(start);
    if (d->options.text) remember(d, node);
    learn(d, node, choice.token);
    if (choice.token == d->options.end_token) {
      w->end = true; /* the token before it stays the last */
      return;
    }
    int child = ust_tree_child(&d->tree, node, choice.token);
    if (child >= 0 && d->tree.nodes[child].row < 0) child = -1;
    w->path[w->count] = node;
    w->tokens[w->count] = choice.token;
    w->origins[w->count++] = child >= 0 ? d->tree.nodes[child].origin : UNDERSTUDY_FROM_TARGET;
    node = child;
  }
}

/* Hands the tokens out, as many as are wanted. */
static void deliver(ust_decoder *d, walked *w, ust_emit_fn emit, void *user) {
  for (int i = 0; i < w->count; i++) {
    ust_account_token(&d->stats, &d->details, &d->report, i + 1, w->origins[i]);
    if (!emit || !emit(user, w->tokens[i], w->origins[i])) continue;
    w->count = i + 1;
    w->end = true;
  }
}

static void commit(ust_decoder *d, const walked *w) {
  int32_t rows[UST_TREE_DEEPEST + 1];
  for (int i = 0; i < w->count; i++) rows[i] = d->tree.nodes[w->path[i]].row;
  ust_timeline_commit(d->timeline, rows, w->count);
  if (d->options.draft) ust_draft_commit(&d->draft, &d->tree, w->path, w->count);
  for (int i = 0; i < w->count; i++) append(d, w->tokens[i]);
}

ust_step ust_decoder_step(ust_decoder *d, int limit, ust_emit_fn emit, void *user) {
  int32_t nodes[UST_TARGET_ROWS];
  walked w = {0};
  limit = UST_MIN(UST_MIN(limit, UST_TREE_DEEPEST + 1), d->options.context - d->history.count);
  if (limit <= 0) return (ust_step){.end = true};
  if (d->unread) read_text(d, NULL, NULL, NULL);
  uint64_t start = ust_clock_ns();
  ust_work before = d->draft.work;
  d->report = (ust_step_report){.expected_tokens = 1};
  int rows = plan(d, limit - 1, nodes);
  target_pass(d, nodes, rows);
  walk(d, limit, &w);
  double seconds = ust_seconds_since(start);
  deliver(d, &w, emit, user); /* the caller's time, not decoding's */
  start = ust_clock_ns();
  commit(d, &w);
  seconds += ust_seconds_since(start);
  d->stats.tokens += (uint64_t)w.count;
  d->stats.seconds += seconds;
  ust_planner_observe_step(&d->planner, w.count, seconds);
  d->report.draft_passes = (int)(d->draft.work.passes - before.passes);
  d->report.draft_rows = (int)(d->draft.work.rows - before.rows);
  d->report.predicted_seconds += d->draft.work.predicted - before.predicted;
  d->report.tokens = w.count;
  d->report.seconds = seconds;
  return (ust_step){.count = w.count, .end = w.end || d->history.count == d->options.context};
}

/* ---- statistics and scores ---- */

void ust_decoder_stats(const ust_decoder *d, understudy_stats *stats) {
  *stats = d->stats;
  stats->draft_passes = d->draft.work.passes;
  stats->draft_rows = d->draft.work.rows;
  stats->draft_seconds = d->draft.work.seconds;
  stats->bytes += d->draft.work.bytes;
  stats->flop += d->draft.work.flop;
}

const ust_details *ust_decoder_details(ust_decoder *d) {
  d->details.text_seconds = d->text.seconds;
  return &d->details;
}

const ust_step_report *ust_decoder_report(const ust_decoder *d) {
  return &d->report;
}

void ust_decoder_reset_stats(ust_decoder *d) {
  d->stats = (understudy_stats){0};
  d->details = (ust_details){0};
  d->text.seconds = 0;
  d->draft.work = (ust_work){0};
}

static float log_probability(const float *logits, int vocabulary, int32_t token) {
  float most = logits[0];
  for (int i = 1; i < vocabulary; i++) most = UST_MAX(most, logits[i]);
  double sum = 0;
  for (int i = 0; i < vocabulary; i++) sum += exp((double)(logits[i] - most));
  return (float)((double)(logits[token] - most) - log(sum));
}

understudy_status ust_decoder_score(ust_decoder *d, const int32_t *tokens, size_t count, float *logprobs,
                                    understudy_progress_fn progress, void *user, understudy_error *err) {
  size_t stride = ust_model_logit_stride(d->options.target);
  int vocabulary = ust_model_config(d->options.target)->vocabulary, threads = ust_model_threads(d->options.target);
  ust_decoder_reset(d, NULL);
  for (size_t at = 0; at + 1 < count;) {
    int room = d->options.context - ust_timeline_committed(d->timeline);
    if (room == 0) {
      ust_decoder_reset(d, NULL);
      continue;
    }
    int rows = (int)UST_MIN((size_t)UST_MIN(UST_TARGET_ROWS, room), count - 1 - at);
    ust_timeline_append(d->timeline, tokens + at, rows, d->logits);
#pragma omp parallel for num_threads(threads)
    for (int i = 0; i < rows; i++)
      logprobs[at + (size_t)i] =
          log_probability(d->logits + (size_t)i * stride, vocabulary, tokens[at + (size_t)i + 1]);
    at += (size_t)rows;
    if (progress && progress(user, "scoring", at, count - 1)) {
      ust_decoder_reset(d, NULL);
      return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "scoring: cancelled after %zu of %zu tokens", at, count - 1);
    }
  }
  ust_decoder_reset(d, NULL);
  return UNDERSTUDY_OK;
}
