// Package fakedb holds databases without a server, for tests in fake time and of
// what a driver sees: DB fails as a test tells it to, RecordingDB notes what
// happened to each of its connections, Noop answers at once and allocates nothing.
// Each is a driver.Connector; none understands SQL, none stands for what a server
// does. The package knows nothing of livepool, so that any package may use it.
package fakedb
