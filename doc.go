// Package livepool gives a program a *sql.DB whose MySQL connections are alive
// when they are handed out.
//
//	db, err := livepool.Open("app:secret@tcp(db:3306)/shop?pool_size=20")
//
// takes the place of sql.Open("mysql", ...). The result is a *Pool, which
// embeds a real *sql.DB, so that everything that works on a *sql.DB works on
// it. livepool sits below database/sql, as a driver.Connector around the MySQL
// driver: database/sql stays the pool, and each driver connection is wrapped
// (conn.go) to be checked when it is handed out (recycle.go, ping.go) and to
// know what a failure means (errors.go). Data flows one way:
//
//	Open -> connector -> conn -> database/sql -> the caller
//
// # What a checkout does
//
// Cheapest check first, each a reason to discard the connection and take
// another: closed; retired by Recycle; older than its own age limit; a look at
// the socket that sees a FIN or RST without a round trip; and, if the
// connection has not completed a round trip for PingAfter or since the pool
// last saw a connection die, a ping bounded by PingTimeout. One death is news
// for all: after a timeout every connection that has not completed a round
// trip since is discarded without a ping, after a closed connection the others
// are pinged before they are trusted.
//
// # What is sent again
//
// database/sql sends a statement again on another connection when the driver
// says driver.ErrBadConn. livepool says it only of failures after which the
// statement cannot have run (see Idempotent for the exception that a caller
// can make), and never inside a transaction.
package livepool
