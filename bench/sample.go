// sample.go is what is kept of each job that was run, and what its error is
// called in the reports.

package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
)

// sample is one job as its runner saw it.
type sample struct {
	job     job
	phase   int
	arrived time.Duration // since the run began
	latency time.Duration // from its arrival, so that waiting for a worker counts
	failure string        // "" if it succeeded
	applied int           // how often, as the ledger says
}

func (s sample) failed() bool { return s.failure != "" }

// failureOf names an error for a person, coarsely enough to be counted.
func failureOf(err error) string {
	var my *mysql.MySQLError
	var op *net.OpError
	switch {
	case err == nil:
		return ""
	case errors.Is(err, context.DeadlineExceeded):
		return "job timeout (" + jobTimeout.String() + ")"
	case errors.As(err, &my):
		return fmt.Sprintf("server error %d", my.Number)
	case errors.Is(err, mysql.ErrInvalidConn):
		return "invalid connection"
	case errors.Is(err, driver.ErrBadConn):
		return "bad connection"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "unexpected EOF"
	case errors.As(err, &op):
		return "network: " + op.Op
	}
	return fmt.Sprintf("%.40s", err.Error())
}

// serverErrorNumber returns the number of a server's error, 0 of any other.
func serverErrorNumber(err error) uint16 {
	var my *mysql.MySQLError
	if errors.As(err, &my) {
		return my.Number
	}
	return 0
}
