/* The token tree: adding candidates and keeping path probabilities. */
#include "speculate/tree.h"

void ust_tree_start(ust_tree *tree, int32_t root_token) {
  tree->count = 1;
  tree->nodes[0] = (ust_node){.token = root_token,
                              .parent = -1,
                              .first_child = -1,
                              .next_sibling = -1,
                              .chance = 1,
                              .reach = 1,
                              .text_cell = -1,
                              .draft_cell = -1,
                              .draft_node = -1,
                              .row = -1};
}

int ust_tree_child(const ust_tree *tree, int parent, int32_t token) {
  int child = tree->nodes[parent].first_child;
  while (child >= 0 && tree->nodes[child].token != token) child = tree->nodes[child].next_sibling;
  return child;
}

int ust_tree_add(ust_tree *tree, int parent, int32_t token, float chance, understudy_origin origin) {
  ust_node *above = &tree->nodes[parent];
  if (tree->count == UST_TREE_CAPACITY || above->depth == UST_TREE_DEEPEST) return -1;
  int node = tree->count++;
  tree->nodes[node] = (ust_node){.token = token,
                                 .parent = parent,
                                 .depth = above->depth + 1,
                                 .first_child = -1,
                                 .next_sibling = above->first_child,
                                 .chance = chance,
                                 .reach = above->reach * chance,
                                 .origin = origin,
                                 .text_cell = -1,
                                 .draft_cell = -1,
                                 .draft_node = -1,
                                 .row = -1};
  above->first_child = node;
  return node;
}

void ust_tree_set_chance(ust_tree *tree, int node, float chance) {
  ust_node *n = &tree->nodes[node];
  n->chance = chance;
  n->reach = tree->nodes[n->parent].reach * chance;
  for (int child = n->first_child; child >= 0; child = tree->nodes[child].next_sibling)
    ust_tree_set_chance(tree, child, tree->nodes[child].chance);
}

int ust_tree_path(const ust_tree *tree, int node, int32_t tokens[UST_TREE_DEEPEST]) {
  int count = tree->nodes[node].depth;
  for (int i = count - 1; i >= 0; i--, node = tree->nodes[node].parent) tokens[i] = tree->nodes[node].token;
  return count;
}
