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

/* Siblings of larger chance, or of the same and proposed earlier. */
static int rank_among_siblings(const ust_tree *tree, int node) {
  float chance = tree->nodes[node].chance;
  int rank = 0;
  for (int i = tree->nodes[tree->nodes[node].parent].first_child; i >= 0; i = tree->nodes[i].next_sibling)
    rank += tree->nodes[i].chance > chance || (tree->nodes[i].chance == chance && i < node);
  return rank;
}

bool ust_tree_fits(const ust_tree *tree, int node, const ust_shape *shape) {
  if (shape->length == 0) return true;
  int turns = 0;
  if (tree->nodes[node].depth > shape->length) return false;
  for (; node > 0; node = tree->nodes[node].parent) {
    int rank = rank_among_siblings(tree, node);
    if (rank > 1 || (rank == 1 && tree->nodes[node].depth == shape->length)) return false;
    turns += rank;
  }
  return turns <= shape->turns;
}

int ust_tree_path(const ust_tree *tree, int node, int32_t tokens[UST_TREE_DEEPEST]) {
  int count = tree->nodes[node].depth;
  for (int i = count - 1; i >= 0; i--, node = tree->nodes[node].parent) tokens[i] = tree->nodes[node].token;
  return count;
}
