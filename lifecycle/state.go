package lifecycle

import "fmt"

// State is where a machine stands between its first packet and a Ready node.
type State string

// The states, in the order of a machine's life.
const (
	Discovered   State = "discovered"   // seen on the wire, not in the list
	Armed        State = "armed"        // to be installed at its next network boot
	Installing   State = "installing"   // its installer has fetched the kickstart
	Installed    State = "installed"    // the last action of %post was reported
	Firstboot    State = "firstboot"    // the installed system's agent has called home
	Initialising State = "initialising" // holds the init lock and runs kubeadm init
	Waiting      State = "waiting"      // waits for the cluster to be initialised
	Joining      State = "joining"      // has been handed its join configuration
	Joined       State = "joined"       // kubeadm join or init is done
	Ready        State = "ready"        // a master saw the node Ready with its address of the list
	Failed       State = "failed"       // see Record.Failure
)

// Trigger is something that happened to a machine and that may change its state.
type Trigger string

// The triggers.
const (
	Arm          Trigger = "arm"           // approved, enrolled, or listed for the first time
	BeginInstall Trigger = "begin-install" // the installer fetched its kickstart
	ReportDone   Trigger = "installed"     // last action of %post
	CallHome     Trigger = "call-home"     // the agent exchanged its token
	TakeInitLock Trigger = "take-init-lock"
	MustWait     Trigger = "must-wait"
	BeginJoin    Trigger = "begin-join"
	ReportJoined Trigger = "joined"
	SeenReady    Trigger = "ready"
	Fail         Trigger = "fail"
	Reinstall    Trigger = "reinstall" // the operator wants it installed anew
	Adopt        Trigger = "adopt"     // the operator says that its disk holds a good system already
)

// TransitionError is a trigger that the state does not allow; the APIs answer it with 409.
type TransitionError struct {
	Machine string
	From    State
	Trigger Trigger
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("%s: %s is not possible while %s", e.Machine, e.Trigger, e.From)
}

// transitions is the whole state machine. What stands here is allowed, nothing else; fail and
// reinstall are possible from every state that belongs to a machine of the list (everywhere).
var transitions = map[State]map[Trigger]State{
	Discovered: {Arm: Armed},
	Armed:      {BeginInstall: Installing, Adopt: Installed},
	Installing: {BeginInstall: Installing, ReportDone: Installed, Adopt: Installed, CallHome: Firstboot}, // again: a power cut, a new attempt
	// ReportDone again: the answer was lost. Ready without having joined: adopted, see Record.Awaited.
	Installed:    {ReportDone: Installed, CallHome: Firstboot, Adopt: Installed, SeenReady: Ready},
	Firstboot:    {CallHome: Firstboot, TakeInitLock: Initialising, MustWait: Waiting, ReportJoined: Joined, SeenReady: Ready},
	Waiting:      {CallHome: Waiting, TakeInitLock: Initialising, MustWait: Waiting, BeginJoin: Joining},
	Initialising: {CallHome: Initialising, TakeInitLock: Initialising, ReportJoined: Joined},
	Joining:      {CallHome: Joining, MustWait: Waiting, BeginJoin: Joining, ReportJoined: Joined},
	Joined:       {CallHome: Joined, ReportJoined: Joined, SeenReady: Ready},
	Ready:        {CallHome: Ready, ReportJoined: Ready, SeenReady: Ready},
	// BeginInstall only where Record.retries allows, see Rack.BeginInstall; the others only where Record.recovers does.
	Failed: {Adopt: Installed, BeginInstall: Installing, ReportDone: Installed, CallHome: Firstboot, ReportJoined: Joined, SeenReady: Ready},
}

var everywhere = map[Trigger]State{Fail: Failed, Reinstall: Armed}

// Next is the state that a trigger leads to, or a *TransitionError.
func Next(from State, t Trigger) (State, error) {
	if to, ok := transitions[from][t]; ok {
		return to, nil
	}
	if to, ok := everywhere[t]; ok && from != Discovered {
		return to, nil
	}
	return from, &TransitionError{From: from, Trigger: t}
}

// PastInstall tells whether a machine in this state has a system of ours on its disk.
func (s State) PastInstall() bool {
	switch s {
	case Installed, Firstboot, Initialising, Waiting, Joining, Joined, Ready:
		return true
	}
	return false
}

// Action is what a machine boots next. It is derived from the state each time, never stored, and DHCP,
// TFTP and HTTP all ask for it at one place (Rack.Decide): they cannot disagree.
type Action string

// The actions.
const (
	ActionIgnore    Action = "ignore"     // not ours: silence
	ActionDiscover  Action = "discover"   // boot into the waiting screen
	ActionInstall   Action = "install"    // boot the installer
	ActionLocalDisk Action = "local-disk" // boot what was installed
	ActionHold      Action = "hold"       // boot the local disk, and tell the operator
	ActionPass      Action = "pass"       // boot nothing by this card: the machine is to boot by another one
	ActionWait      Action = "wait"       // to be installed, but its kickstart would be refused: a screen says why, and asks again
)
