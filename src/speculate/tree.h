/* tree: the candidates of one step. Node 0 is the last committed token; a node's children are tokens that may
 * follow it, each with an estimate that the target will choose it there. Plain arrays, a fixed capacity. */
#ifndef UST_SPECULATE_TREE_H
#define UST_SPECULATE_TREE_H

#include "base/base.h"

enum {
  UST_TREE_CAPACITY = 1024, /* candidates considered in a step */
  UST_TREE_DEEPEST = 28     /* levels below the root; within what attention allows (UST_TREE_DEPTH) */
};

typedef struct ust_node {
  int32_t token, parent, depth;
  int32_t first_child, next_sibling; /* -1: none */
  float chance;                      /* that the target chooses it, given its parent is right */
  float reach;                       /* that the whole path from the root is right */
  understudy_origin origin;          /* the stage that proposed it first */
  int16_t text_cell, draft_cell;     /* where each stage's record of such candidates is kept; -1: did not propose it */
  int32_t draft_node;                /* its node in the draft's timeline; -1: the draft has not evaluated it */
  bool text_done;                    /* the text stage has proposed its children */
  int8_t known;                      /* class of the chance its children had together when the draft was asked */
  int32_t row;                       /* its row in the target's pass; -1: left out */
} ust_node;

typedef struct ust_tree {
  int count;
  ust_node nodes[UST_TREE_CAPACITY];
} ust_tree;

/* What a tree may look like. */
typedef struct ust_shape {
  int length; /* levels below the root; 0: anything, a planner decides */
  int turns;  /* how often a path may take a second choice instead of the first; not at the last level */
} ust_shape;

void ust_tree_start(ust_tree *tree, int32_t root_token);
/* The child of `parent` holding `token`; -1: none. */
int ust_tree_child(const ust_tree *tree, int parent, int32_t token);
/* Adds a child; -1 when the tree is full or the parent too deep. */
int ust_tree_add(ust_tree *tree, int parent, int32_t token, float chance, understudy_origin origin);
/* Changes a node's chance and with it the reach of all below it. */
void ust_tree_set_chance(ust_tree *tree, int node, float chance);
/* Is the node part of a tree of this shape, siblings ranked by chance? */
bool ust_tree_fits(const ust_tree *tree, int node, const ust_shape *shape);
/* Tokens from below the root to `node`; returns their number. */
int ust_tree_path(const ust_tree *tree, int node, int32_t tokens[UST_TREE_DEEPEST]);

#endif
