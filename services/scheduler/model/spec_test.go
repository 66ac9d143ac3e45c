// Package model tests the life of jobs against an executable model of docs/state-machine.md. Random histories of clients,
// workers, schedulers and operators drive the real lifecycle, job store, queue, bucket and passes of the scheduler. Each
// step is one step of one actor; calls to Redis are lost, repeated or interrupted by steps of other actors. After each step
// the keys in Redis are compared with the tables of this file and with the invariants.
//
// The package is here because it needs pkg/jobs and the passes of services/scheduler/maintenance.
package model

import "slices"

// step is a kind of step. The tables say which kinds may move a job or a unit.
type step string

const (
	start     step = "kick-off"
	claim     step = "claim"
	heartbeat step = "heartbeat"
	stage     step = "stage"
	commit    step = "commit"
	release   step = "release"
	giveUp    step = "give up" // by the worker: it closes the unit as failed, or fails the job
	cancel    step = "cancel"
	reopen    step = "reopen" // by an operator
	skip      step = "skip"   // by an operator, who gives a unit up
	rescue    step = "rescue"
	expire    step = "expire"
	purge     step = "purge"
	makeRoom  step = "make room" // an expire pass that purges
	other     step = "other"     // moves nothing
)

// The states of a job. A job that does not exist is gone.
const (
	gone      = "gone"
	scheduled = "scheduled"
	planning  = "planning"
	running   = "running"
	sealing   = "sealing"
	completed = "completed"
	failed    = "failed"
	cancelled = "cancelled"
	expired   = "expired"
)

var live = []string{scheduled, planning, running, sealing}

func isLive(state string) bool { return slices.Contains(live, state) }

type move struct{ from, to string }

// jobMoves is the table of docs/state-machine.md.
var jobMoves = map[move][]step{
	{gone, scheduled}: {start},
	{scheduled, gone}: {start, rescue}, // a kick-off that failed is undone, or found by the rescue

	{scheduled, planning}: {claim},
	{planning, running}:   {commit},
	{running, sealing}:    {claim},
	{sealing, completed}:  {commit},

	{scheduled, failed}: {rescue}, // it is too old
	{planning, failed}:  {rescue, giveUp},
	{running, failed}:   {rescue},
	{sealing, failed}:   {rescue, giveUp},

	{scheduled, cancelled}: {cancel},
	{planning, cancelled}:  {cancel},
	{running, cancelled}:   {cancel},
	{sealing, cancelled}:   {cancel},
	{completed, cancelled}: {cancel},
	{failed, cancelled}:    {cancel},

	{completed, expired}: {expire, makeRoom},
	{failed, expired}:    {expire, makeRoom},
	{cancelled, gone}:    {purge, makeRoom},
	{expired, gone}:      {purge, makeRoom},
	{completed, gone}:    {makeRoom}, // both steps in one
	{failed, gone}:       {makeRoom},
}

// The places of a unit within its job.
const (
	absent  = "absent"
	staged  = "staged"
	waiting = "waiting"
	issued  = "issued" // and not claimed
	claimed = "claimed"
	closed  = "closed"
	back    = "taken back" // a stage that was opened, until the retried unit before it is closed
)

// unitMoves is the table of the units of a live job. A commit also issues units, and a release may follow a loss.
var unitMoves = map[move][]step{
	{absent, issued}:   {start, commit, giveUp}, // the plan; the next stage, which is issued at once
	{absent, waiting}:  {commit, giveUp, skip},
	{absent, staged}:   {stage},
	{staged, absent}:   {stage, giveUp, skip, reopen},
	{staged, waiting}:  {commit},
	{staged, issued}:   {commit},
	{waiting, issued}:  {commit, giveUp, rescue},
	{issued, claimed}:  {claim, heartbeat, stage, giveUp}, // all but the claim: a lost worker turns up
	{claimed, issued}:  {release, rescue, reopen},
	{issued, closed}:   {commit, giveUp, skip}, // by a worker: a lost one turns up
	{claimed, closed}:  {commit, giveUp, skip},
	{waiting, closed}:  {skip},
	{closed, issued}:   {reopen},
	{issued, back}:     {reopen},
	{waiting, back}:    {reopen},
	{back, waiting}:    {commit, giveUp, skip},
	{back, issued}:     {commit, giveUp},
	{issued, issued}:   {rescue, reopen, release}, // under a higher fence, or the release of a lost worker
	{claimed, claimed}: {},
}
