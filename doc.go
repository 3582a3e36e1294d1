// Package livepool gives a program a *sql.DB whose MySQL connections are alive
// when they are handed out.
//
//	db, err := livepool.Open("app:secret@tcp(db:3306)/shop?pool_size=20")
//
// takes the place of sql.Open("mysql", ...). The result is a *Pool, which
// embeds a real *sql.DB, so that everything that works on a *sql.DB works on
// it. livepool sits below database/sql, as a driver.Connector around the MySQL
// driver: database/sql stays the pool, and each driver connection is wrapped to
// check it when it is handed out and to judge what a failure means. Packages
// depend on those below them only:
//
//	livepool             what a user sees, and the unit of work
//	trace                what a Config's Tracer is told
//	internal/connector   connections below database/sql: checkout, ping, outage, kill
//	internal/wire        the net.Conn below the driver
//	internal/mysqlerr, sqltext, committable, hosts, fifo, clock, ...
//
// The files of internal/connector are named below. When a connection is pinged
// and when it is too old is set in ping.go and recycle.go of this package.
//
// # What a checkout does
//
// Cheapest check first, each a reason to discard the connection and take
// another: closed; retired by Recycle; older than its own age limit; a look at
// the socket that sees a FIN or RST without a round trip; and, if the
// connection has not completed a round trip for PingAfter or since the pool
// last saw a connection die, a ping bounded by PingTimeout. One loss
// concerns all: after a timeout every connection that has not completed a round
// trip since is pinged in the background before it is handed out, and after a
// closed connection the others are pinged before they are trusted.
//
// # A unit of work
//
// WithSession runs a function in one transaction on one connection, and applies
// it exactly as often as it says: nil means once, an error that is
// ErrCommitUnknown once or not at all, any other error not at all. The function
// is run again as long as its transaction cannot have been committed and the
// cause may pass (internal/mysqlerr has the table); Once and VerifyCommit, whose key is
// inserted in the same transaction, also resolve a COMMIT whose answer was
// lost.
//
// A function may therefore run more than once: what it does outside the
// database must tolerate being repeated, or wait for Session.AfterCommit. It gets ids, not
// objects. A statement that commits implicitly, such as DDL, ends what can be
// promised.
//
// # In the background
//
// A Pool's maintainer pings idle connections every KeepAlive, replaces them
// before they are too old, keeps MinIdle of them ready, and sweeps them after a
// death, so that no caller waits for it (maintain.go). A statement that gets no
// reply for StallAfter is looked up on the server: a slow one is waited for, a
// dead connection is abandoned. The thread that an abandoned connection leaves on
// the server is killed, once it is proved to be its own (internal/proclist). While
// the server cannot be reached one prober dials for all sessions (internal/outage). Of
// several hosts it looks for the one that takes writes (internal/hosts).
//
// # Transactions
//
// Once the server has ended a transaction, by a deadlock or with its
// connection, nothing more runs in it: a later statement would be committed by
// itself, and survive the rollback. It fails with ErrPoisoned instead, in a
// plain sql.Tx too.
//
// # What is sent again
//
// database/sql sends a statement again on another connection when the driver
// says driver.ErrBadConn. livepool says it only of failures after which the
// statement outside a transaction cannot have run (see Idempotent for the
// exception that a caller can make).
package livepool
