// Package livepooltest breaks connections in tests of code that runs on livepool, at the
// moment that matters: a COMMIT whose answer is lost, a deadlock, a server that goes away.
//
// The faults are methods of [Faults]. [NewProxy] has them happen between a pool and a real
// server, [Mock] without any server, on sqlmock. A fault that was asked for and met nothing
// fails the test at its end: it has shown nothing.
//
// [Twice] runs the function of a unit of work twice, as livepool may, and says what is then
// different from one run.
//
// NewProxy, Mock and Twice may end the test, and are called in its goroutine; Twice calls
// the function and the states there, too. The methods of Faults may be called from any
// goroutine.
package livepooltest
