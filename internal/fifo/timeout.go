package fifo

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrTimeout is returned by Take when the deadline has passed.
var ErrTimeout = errors.New("livepool: no connection within PoolTimeout")

// TimeoutError is ErrTimeout with the reason: the pool is exhausted, or the database cannot
// be reached.
type TimeoutError struct {
	unit           string
	waited         time.Duration
	inUse, waiting int // sessions that have a place, and that wait for one, this one included
	longest        string
	held           time.Duration // by longest

	// What the queue does not know; its user sets it.

	OpenConns int   // connections in use, by sessions and others
	Limit     int   // of SetMaxOpenConns, if the user has called it
	LastErr   error // of the last connection that could not be opened, if none could since
}

// TimeoutError counts a session that has waited in vain, and returns its error.
func (q *Queue) TimeoutError(unit string, waited time.Duration) *TimeoutError {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.timeouts++
	longest, held := q.longestLocked()
	return &TimeoutError{unit: unit, waited: waited, inUse: q.taken, waiting: q.waiters.Len() + 1, longest: longest, held: held}
}

func (e *TimeoutError) Error() string {
	text := fmt.Sprintf("livepool: no connection for %s within PoolTimeout (pool_timeout): waited %s; ", e.unit, e.waited.Round(time.Millisecond))
	if e.LastErr != nil {
		text += fmt.Sprintf("the database cannot be reached: %s; ", strings.TrimPrefix(e.LastErr.Error(), "livepool: "))
	} else {
		text += "the pool is exhausted: "
	}
	text += fmt.Sprintf("%d sessions in use, %d waiting, %d connections in use", e.inUse, e.waiting, e.OpenConns)
	if e.held > 0 {
		text += fmt.Sprintf("; %s has held its connection longest, for %s", e.longest, e.held.Round(time.Millisecond))
	}
	switch {
	case e.LastErr != nil:
	case e.Limit > 0:
		text += fmt.Sprintf("; the limit is that of SetMaxOpenConns(%d), which was called on the sql.DB: leave the call out and set pool_size and pool_max_overflow, or look for what holds connections", e.Limit)
	default:
		text += "; raise pool_size, or look for what holds connections"
	}
	return text
}
func (e *TimeoutError) Is(target error) bool { return target == ErrTimeout }
func (e *TimeoutError) Unwrap() error        { return e.LastErr }
