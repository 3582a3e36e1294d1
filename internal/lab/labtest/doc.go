// Package labtest is what the tests of livepool share, with a server and without:
// pools, units of work, waits for a condition, logs that are kept. It stands above
// livepool and is for tests outside of it; a package below livepool, whose tests it
// would import in a circle, has fakedb. Servers are package servertest's.
package labtest
