/* account: the decoder's books: what its candidates came to and where the time went. */
#ifndef UST_SPECULATE_ACCOUNT_H
#define UST_SPECULATE_ACCOUNT_H

#include "base/details.h"
#include "speculate/planner.h"
#include "speculate/tree.h"

/* The target scored these nodes, nodes[0] the root. */
void ust_account_pass(ust_details *details, ust_step_report *report, const ust_tree *tree, const int32_t *nodes,
                      int rows, double seconds);
/* The target has chosen at the node's parent: this node's token (`hit`) or another. */
void ust_account_candidate(ust_details *details, const ust_node *node, bool hit);
/* A token was decided, `depth` levels below the root. */
void ust_account_token(understudy_stats *stats, ust_details *details, ust_step_report *report, int depth,
                       understudy_origin origin);

#endif
