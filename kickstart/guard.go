package kickstart

import (
	"fmt"
	"text/template"
	"text/template/parse"
)

// guard refuses a template that prints a value as it is: the last function of every printing action must be
// one of quoting. So nobody who writes a profile can forget it.
func guard(t *template.Template) error {
	if t.Tree == nil || t.Root == nil {
		return nil
	}
	return guardNode(t.Tree, t.Root)
}

func guardNode(tree *parse.Tree, n parse.Node) error {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, child := range n.Nodes {
			if err := guardNode(tree, child); err != nil {
				return err
			}
		}
	case *parse.ActionNode:
		if len(n.Pipe.Decl) == 0 && !quotes(n.Pipe) {
			where, what := tree.ErrorContext(n)
			return fmt.Errorf("%s: %s prints a value that is not quoted (ks, sh, toml, line…)", where, what)
		}
	case *parse.IfNode:
		return guardBranch(tree, &n.BranchNode)
	case *parse.RangeNode:
		return guardBranch(tree, &n.BranchNode)
	case *parse.WithNode:
		return guardBranch(tree, &n.BranchNode)
	}
	return nil
}

func guardBranch(tree *parse.Tree, n *parse.BranchNode) error {
	if err := guardNode(tree, n.List); err != nil {
		return err
	}
	return guardNode(tree, n.ElseList)
}

func quotes(pipe *parse.PipeNode) bool {
	last := pipe.Cmds[len(pipe.Cmds)-1]
	function, ok := last.Args[0].(*parse.IdentifierNode)
	return ok && quoting[function.Ident] != nil
}
