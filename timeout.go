// timeout.go tells a session that waited in vain for a connection what was in its
// way.

package livepool

import (
	"errors"
	"fmt"
	"time"
)

// ErrPoolTimeout is what errors.Is finds in the error of a session that waited
// for a connection longer than PoolTimeout.
var ErrPoolTimeout = errors.New("livepool: no connection within PoolTimeout")

// poolTimeoutError is ErrPoolTimeout with its story: is the pool exhausted, or
// the database down?
type poolTimeoutError struct {
	waited        time.Duration
	inUse         int // sessions that have a place
	waiting       int // sessions that wait for one, this one included
	openConns     int // connections in use, by sessions and others
	longestHolder string
	heldFor       time.Duration // by longest
	limit         int           // of SetMaxOpenConns, if the user has called it
	lastErr       error         // of the last connection that could not be opened, if none could since
}

func (e *poolTimeoutError) Error() string {
	text := fmt.Sprintf("livepool: no connection within PoolTimeout (pool_timeout): waited %s; ", e.waited.Round(time.Millisecond))
	if e.lastErr != nil {
		text += fmt.Sprintf("the database cannot be reached: %v; ", e.lastErr)
	} else {
		text += "the pool is exhausted: "
	}
	text += fmt.Sprintf("%d sessions in use, %d waiting, %d connections in use", e.inUse, e.waiting, e.openConns)
	if e.heldFor > 0 {
		text += fmt.Sprintf("; %s has held its connection longest, for %s", e.longestHolder, e.heldFor.Round(time.Millisecond))
	}
	switch {
	case e.lastErr != nil:
	case e.limit > 0:
		text += fmt.Sprintf("; the limit is that of SetMaxOpenConns(%d), which was called on the sql.DB: leave the call out and set pool_size and pool_max_overflow, or look for what holds connections", e.limit)
	default:
		text += "; raise pool_size, or look for what holds connections"
	}
	return text
}
func (e *poolTimeoutError) Is(target error) bool { return target == ErrPoolTimeout }
func (e *poolTimeoutError) Unwrap() error        { return e.lastErr }

// poolTimeout is the error of a session that has waited for its place, or its
// connection, in vain.
func (p *Pool) poolTimeout(waited time.Duration) error {
	st := p.DB.Stats()
	e := &poolTimeoutError{waited: waited, openConns: st.InUse, lastErr: p.ctr.Outage.LastError()}
	if st.MaxOpenConnections != p.ctr.Cfg.MaxOpenConns() {
		e.limit = st.MaxOpenConnections
	}
	e.inUse, e.waiting, e.longestHolder, e.heldFor = p.queue.RecordTimeout()
	return e
}
