/* Acceptance records and the rate. */
#include <math.h>

#include "speculate/planner.h"

/* MEMORY: observations after which the older half counts for little: a text that changes character is followed. */
enum { MEMORY = 64, PRIOR_WEIGHT = 4 };

float ust_record_chance(const ust_record *r, float scale) {
  return (r->hits + UST_MIN(r->prior * scale, 1.0f) * r->weight) / (r->trials + r->weight);
}

float ust_planner_scale(const ust_record *covers) {
  return ust_record_chance(covers, 1) / covers->prior;
}

void ust_record_observe(ust_record *r, bool hit) {
  r->trials += 1;
  r->hits += hit;
  if (r->trials > MEMORY) {
    r->trials *= 0.5f;
    r->hits *= 0.5f;
    r->weight *= 0.5f;
  }
}

/* Five times of this bring back about what one observation takes: a useless stage is tried in one step of five or
 * less. */
void ust_record_fade(ust_record *r) {
  r->trials *= 0.999f;
  r->hits *= 0.999f;
  r->weight += 0.001f * (PRIOR_WEIGHT - r->weight);
}

static ust_record believed(float prior) {
  return (ust_record){.prior = prior, .weight = PRIOR_WEIGHT};
}

static const float gap_edges[UST_GAPS - 1] = {0.1f, 0.25f, 0.5f, 0.9f, 1.4f, 2.0f, 3.0f, 4.5f, 7.0f};

int ust_planner_gap(float gap) {
  int i = 0;
  while (i < UST_GAPS - 1 && gap > gap_edges[i]) i++;
  return i;
}

int ust_planner_known(float chance) {
  return chance <= 0 ? 0 : 1 + (int)(UST_MIN(chance, 0.99f) * (UST_KNOWN - 1));
}

void ust_planner_init(ust_planner *p) {
  *p = (ust_planner){0};
  p->draft_covers = believed(0.8f);
  for (int known = 0; known < UST_KNOWN; known++) p->evaluated[known] = believed(0.7f + 0.05f * (float)known);
  p->text_covers = believed(0.6f);
  p->unconfirmed = believed(0.03f);
  for (int rank = 0; rank < UST_CANDIDATES; rank++)
    for (int gap = 0; gap < UST_GAPS; gap++) {
      float edge = gap ? gap_edges[gap - 1] : 0.05f;
      /* two scores a gap apart: a logistic guess, wrong in detail and soon replaced by what is observed */
      float ahead = 1 / (1 + expf(-0.8f * edge)), behind = (1 - ahead) / (float)UST_MAX(rank, 1);
      for (int known = 0; known < 2; known++)
        p->draft_hits[ust_draft_cell(known, rank, gap)] = believed(rank == 0 ? 0.9f * ahead : 0.5f * behind);
      for (int order = 0; order < UST_ORDERS; order++) {
        float trust = 0.25f + 0.12f * (float)order;
        p->text_hits[ust_text_cell(false, order, rank, gap)] = believed(rank == 0 ? trust * ahead : 0.3f * behind);
        p->text_hits[ust_text_cell(true, order, rank, gap)] = believed(rank == 0 ? 0.4f * ahead : 0.3f * behind);
      }
    }
}

bool ust_planner_hopes(const double *price, int count, int most, double expected, double reach, double best) {
  for (int n = count + 1; n <= most; n++)
    if (expected + reach * (n - count) - price[n] > best) return true;
  return false;
}

double ust_planner_rate(const ust_planner *p) {
  double plain = ust_cost_of(&p->target_cost, 1);
  double rate = p->seconds > 0 ? p->tokens / p->seconds : 0;
  return UST_MAX(rate, plain > 0 ? 1 / plain : 0);
}

double ust_planner_row(const ust_planner *p) {
  enum { FEW = 8 };
  if (p->row > 0) return p->row;
  return ust_planner_rate(p) * (ust_cost_of(&p->target_cost, FEW) - ust_cost_of(&p->target_cost, 1)) / (FEW - 1);
}

void ust_planner_prices(const ust_planner *p, double price[UST_TARGET_ROWS + 1]) {
  double rate = ust_planner_rate(p);
  for (int rows = 1; rows <= UST_TARGET_ROWS; rows++) price[rows] = rate * ust_cost_of(&p->target_cost, rows);
}

void ust_planner_observe_plan(ust_planner *p, const ust_plan *plan, const double *price, bool drafts) {
  const double fade = 0.05;
  enum { PATIENCE = 8 };
  double another = plan->rows < UST_TARGET_ROWS ? price[plan->rows + 1] - price[plan->rows] : HUGE_VAL;
  p->row = 0.9 * ust_planner_row(p) + 0.1 * UST_MAX(UST_MIN(plan->last, another), 0.0);
  p->single = plan->rows == 1 ? UST_MIN(p->single + 1, PATIENCE + 1) : 0;
  double missed = drafts ? UST_MAX(plan->first, (double)ust_record_chance(&p->evaluated[0], 1)) : plan->first;
  if (p->single > PATIENCE && another >= missed) ust_cost_fade_rows(&p->target_cost, fade * missed);
}

void ust_planner_observe_step(ust_planner *p, int tokens, double seconds) {
  p->tokens = 0.95 * p->tokens + tokens;
  p->seconds = 0.95 * p->seconds + seconds;
}
