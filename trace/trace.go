// Package trace has the interfaces by which a pool tells what it does beside the statements
// themselves, which livepool.Config.Wrap shows. A value with one or more of them is a
// livepool.Config's Tracer; their methods get a context, and what happened, as a struct to
// which fields may be added. For several there is All; the modules otel and prometheus beside
// this package have tracers for those.
//
// The methods are called where things happen, from many goroutines and also in the
// background: they must be quick, safe for concurrent use, and must not use the pool. A panic
// in one of them is logged and goes no further. Nothing is called where a plain statement
// runs on a connection that needs no ping.
package trace

import (
	"context"
	"time"
)

// All is a Tracer of several: each is told, in their order, and a context goes from one to the
// next.
type All []any

// A UnitTracer is told of each unit of work, but for those inside others. The unit runs under
// the context that TraceUnitStart returns, which must be ctx or made from it.
type UnitTracer interface {
	TraceUnitStart(ctx context.Context, start UnitStart) context.Context
	TraceUnitEnd(ctx context.Context, end UnitEnd)
}

// UnitStart is the beginning of a unit.
type UnitStart struct {
	Unit string // its name, as livepool.Name gave it
	Key  string // in the commit table, of Once or VerifyCommit; "" for none
}

// UnitEnd is the end of a unit.
type UnitEnd struct {
	UnitStart
	Took     time.Duration
	Attempts int
	Outcome  Outcome
	Err      error // what WithSession returns; nil also if the function panics
}

// An Outcome is what is known of a unit's transaction when the unit has ended.
type Outcome string

// The outcomes. A function that panics or exits its goroutine leaves NotApplied; so does the
// unknown outcome of another unit, inside this one, whose error is returned.
const (
	Applied        Outcome = "applied"
	NotApplied     Outcome = "not_applied"     // but for what DDL had committed by then
	AlreadyApplied Outcome = "already_applied" // by another unit with the key of Once
	Unknown        Outcome = "unknown"         // livepool.ErrCommitUnknown
)

// An AcquireTracer is told how each attempt of a unit gets its connection: from when it asks
// for a place in the pool until its transaction has begun. The connection is opened, pinged
// and used under the context that TraceAcquireStart returns, which must be ctx or made from
// it; the statements have that of the unit.
type AcquireTracer interface {
	TraceAcquireStart(ctx context.Context, start AcquireStart) context.Context
	TraceAcquireEnd(ctx context.Context, end AcquireEnd)
}

// AcquireStart is when an attempt asks for a connection.
type AcquireStart struct {
	Unit    string
	Attempt int // from 1
}

// AcquireEnd is when it has one, or gives up.
type AcquireEnd struct {
	AcquireStart
	Took   time.Duration
	Queued time.Duration // of that, for a place in the pool
	Err    error
}

// A ConnectTracer is told of each connection that is opened for callers, or in the background
// to be ready for them; not of the attempts by which an outage is watched, the last of which
// is used as well. It is opened under the context that TraceConnectStart returns, which
// must be ctx or made from it.
type ConnectTracer interface {
	TraceConnectStart(ctx context.Context, start ConnectStart) context.Context
	TraceConnectEnd(ctx context.Context, end ConnectEnd)
}

// ConnectStart is when a connection begins to be opened.
type ConnectStart struct{ Addr string }

// ConnectEnd is when it is logged in, or has failed.
type ConnectEnd struct {
	Conn // Age is zero
	Took time.Duration
	Err  error
}

// Conn identifies a connection.
type Conn struct {
	Addr     string
	ThreadID uint32        // the server's; 0 where it is not known
	Age      time.Duration // since it was logged in
}

// An EventTracer is told of what happens at a moment. The context is that of the caller to
// whom it happens, or the background's.
type EventTracer interface {
	TraceEvent(ctx context.Context, event Event)
}

// An Event is a Release, Retry, Commit, Ping, Resend, Death, Discard, Kill, OutageStart or OutageEnd.
// A type switch should ignore those that it does not know: later versions may have more.
type Event interface{ event() }

// Release is an attempt of a unit that gives its connection back.
type Release struct {
	Unit string
	Held time.Duration // since AcquireEnd
}

// Retry is an attempt of a unit, or of a function of Pool.Retry, that failed and is followed
// by another, if its context does not end during Wait.
type Retry struct {
	Unit    string
	Attempt int           // that has failed, from 1
	Wait    time.Duration // before the next one, without the wait for the end of an outage
	Cause   error
}

// Commit is the COMMIT of a unit that was sent: answered, or its answer lost
// (livepool.ErrCommitUnknown).
type Commit struct {
	Unit string
	Took time.Duration
	Err  error
}

// Ping is a ping that a caller waited for. Those of KeepAlive are counted in livepool.Stats.
type Ping struct {
	Conn
	Took   time.Duration
	Failed string // why the connection is not handed out; "" if it is
}

// Resend is a statement that failed with its connection and is sent again by database/sql,
// because it cannot have run or may run twice.
type Resend struct {
	Conn
	Cause error
}

// Death is a connection that was found dead: closed by the other end, or silent.
type Death struct {
	Conn
	Cause error // of the socket or the server; nil where there is none
}

// Discard is a connection that is given up while nobody uses it: at its age limit, or because
// of what a ping or a look at the socket showed, which may be a Death as well. One that was
// idle for too long, or closed for the state on it, is none.
type Discard struct {
	Conn
	Why string // one of a few texts
}

// Kill is what KillAbandoned has done about some connections that were left at work.
type Kill struct {
	Addr     string
	Killed   int
	Gone     int // already
	Unproved int // not killed, because no thread of the server could be proved to be theirs
	Failed   int
}

// OutageStart is the beginning of an outage.
type OutageStart struct {
	Addr  string
	What  string // for example "cannot be reached"
	Cause error
}

// OutageEnd is its end.
type OutageEnd struct {
	Addr   string
	What   string
	Lasted time.Duration
}

func (Release) event()     {}
func (Retry) event()       {}
func (Commit) event()      {}
func (Ping) event()        {}
func (Resend) event()      {}
func (Death) event()       {}
func (Discard) event()     {}
func (Kill) event()        {}
func (OutageStart) event() {}
func (OutageEnd) event()   {}
