// connecterror.go is the error of a connection that could not be opened.

package connector

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/livepool/livepool/internal/mysqlerr"
)

// ConnectError is the error of a connection that could not be opened: how far the attempt
// came, and why it failed.
type ConnectError struct {
	Text        string
	Cause       error
	Unreachable bool // for want of a server that takes it
	startedAt   time.Duration
	notDialed   bool // no network connection was made
	noReply     bool // one was made, and the server did not answer in time
}

func (e *ConnectError) Error() string { return e.Text + ": " + e.Cause.Error() }
func (e *ConnectError) Is(target error) bool {
	return e.Unreachable && target == mysqlerr.ErrUnreachable
}
func (e *ConnectError) Unwrap() error         { return e.Cause }
func (e *ConnectError) Class() mysqlerr.Class { return mysqlerr.ConnectClass(e.Cause) }

// connectTimeoutError is the end of ConnectTimeout. It is not the caller's own
// deadline and does not look like it: it matches os.ErrDeadlineExceeded, as a
// network timeout.
type connectTimeoutError struct{}

func (*connectTimeoutError) Error() string        { return os.ErrDeadlineExceeded.Error() }
func (*connectTimeoutError) Is(target error) bool { return target == os.ErrDeadlineExceeded }
func (*connectTimeoutError) Timeout() bool        { return true }

// newConnectError is the error of an attempt that finished with err, or whose caller gave
// up with err.
func (ctr *Connector) newConnectError(o *connectAttempt, err error, finished bool) error {
	w := o.wire.Load()
	progress := w.Progress()
	if w == nil && o.side == nil && ctr.hostSet != nil {
		progress = "before one of its hosts was found that can be used"
	}
	elapsed := ctr.clock.Now() - o.startedAt
	e := &ConnectError{
		Text:      fmt.Sprintf("livepool: connecting to %s failed after %s", ctr.addr, elapsed.Round(time.Millisecond)),
		Cause:     err,
		startedAt: o.startedAt,
		notDialed: ctr.ownDialer && w == nil,
	}
	var timeout *connectTimeoutError
	var own *afterConnectError
	switch {
	case errors.As(err, &own):
		e.Text += ", after the login"
	case errors.As(err, &timeout) && o.inHook.Load():
		e.Text += ", the ConnectTimeout (pool_connect_timeout), after the login"
		e.Cause = &afterConnectError{err}
	case errors.As(err, &timeout):
		e.Text += ", the ConnectTimeout (pool_connect_timeout), " + progress
		e.noReply = w != nil
	case ctr.Ctx.Err() != nil:
		e.Cause = ErrPoolClosed
	case !finished:
		e.Text += ", its caller having given up, " + progress
	case mysqlerr.CallerGaveUp(err):
		e.Text += ", by the dialer's own limit: " + err.Error()
		e.Cause = &connectTimeoutError{}
	case ctr.ownDialer && w != nil && w.IOErr != nil:
		e.Text = fmt.Sprintf("%s, %s (%v)", e.Text, progress, w.IOErr)
	}
	e.Unreachable = ctr.IsUnreachable(e)
	return e
}
