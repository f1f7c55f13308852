/* The decoder's books: what its candidates came to and where the time went. Nothing here decides anything. */
#include "speculate/account.h"

_Static_assert((int)UST_DETAIL_DEPTHS > (int)UST_TREE_DEEPEST, "a place for every depth");
_Static_assert((int)UST_DETAIL_ROWS > (int)UST_TARGET_ROWS, "a place for every number of rows");
_Static_assert((int)UST_DETAIL_RANKS >= (int)UST_CANDIDATES, "a place for every rank");

void ust_account_pass(ust_details *details, ust_step_report *report, const ust_tree *tree, const int32_t *nodes,
                      int rows, double seconds) {
  details->rows[rows]++;
  details->row_seconds[rows] += seconds;
  report->rows_from[UNDERSTUDY_FROM_TARGET] = 1;
  for (int row = 1; row < rows; row++) {
    details->depth[tree->nodes[nodes[row]].depth].proposed++;
    report->rows_from[tree->nodes[nodes[row]].origin]++;
  }
}

static void tally(ust_tally *tally, bool hit) {
  tally->proposed++;
  tally->accepted += hit;
}

void ust_account_candidate(ust_details *details, const ust_node *node, bool hit) {
  if (node->draft_cell >= 0) tally(&details->rank[UNDERSTUDY_FROM_DRAFT][ust_cell_rank(node->draft_cell)], hit);
  if (node->text_cell < 0) return;
  understudy_origin origin = ust_cell_of_file(node->text_cell) ? UNDERSTUDY_FROM_NGRAM : UNDERSTUDY_FROM_CONTEXT;
  tally(&details->rank[origin][ust_cell_rank(node->text_cell)], hit);
}

void ust_account_token(understudy_stats *stats, ust_details *details, ust_step_report *report, int depth,
                       understudy_origin origin) {
  stats->accepted[origin]++;
  report->tokens_from[origin]++;
  if (origin != UNDERSTUDY_FROM_TARGET) details->depth[depth].accepted++;
}
