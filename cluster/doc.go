// Package cluster takes the machines of the list into one Kubernetes cluster: who initialises it, who waits, who joins
// and when, what a master has to do for that, and what is rendered for kubeadm. It speaks to nobody: the node plane
// (package firstboot) carries its work to the agents and their results back, the operator's plane asks it for what only
// a master can do.
//
// What must survive a kill at any instant is in the lifecycle's records: the init lock, what a machine was handed for
// itself, the public halves of tokens. The rest follows from these records each time, and is kept in memory alone: the
// chores of the masters, the tokens and keys themselves. After a restart they are asked for again; all of it may be done
// twice.
//
// The next step of a machine is decided by one function without side effects (decide); everything else carries steps
// out.
package cluster
