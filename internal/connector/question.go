// question.go asks a host whether it is there, by a login. Any word of it is an answer; and a
// login that it has greeted goes on to its end, for those that are broken off count against the
// client (max_connect_errors).

package connector

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/wire"
)

// silentLimit is how long a host may say nothing to a new connection: longer where its logins
// take long, as with names that resolve slowly.
func (h *host) silentLimit(connectTimeout time.Duration) time.Duration {
	return min(max(silentLimit, 2*time.Duration(h.loginTakes.Load())), connectTimeout)
}

// noteLogin notes how long a login took. One that is longer than any host is waited for counts at
// once; of others the fastest does, since it may be the client that is slow.
func (h *host) noteLogin(took time.Duration) {
	for {
		last := time.Duration(h.loginTakes.Load())
		isFaster := last == 0 || last > hosts.Silence || took < last
		if took <= hosts.Silence && !isFaster || h.loginTakes.CompareAndSwap(int64(last), int64(took)) {
			return
		}
	}
}

// question is a login by which a host is asked whether it is there.
type question struct {
	wire   atomic.Pointer[wire.Conn]
	done   chan struct{} // closed when the login has ended
	isTold bool          // the host has answered, or refused the connection; read after done
	giveUp context.CancelFunc
}

// ask begins a question.
func (ctr *Connector) ask(h *host) *question {
	q := &question{done: make(chan struct{})}
	ctx, cancel := context.WithTimeout(ctr.Ctx, ctr.Cfg.ConnectTimeout)
	q.giveUp = cancel
	if !ctr.startAttempt(func() {
		defer close(q.done)
		defer cancel()
		l, err := ctr.login(ctx, h, h.side, &q.wire)
		l.close()
		q.isTold = err == nil || driverconn.IsAnswer(err) || errors.Is(err, syscall.ECONNREFUSED)
	}) {
		cancel()
	}
	return q
}

// hasWord says whether the host has said anything.
func (q *question) hasWord() bool {
	select {
	case <-q.done:
		return q.isTold || q.wire.Load().HasSpoken()
	default:
		return q.wire.Load().HasSpoken()
	}
}

// awaitWord waits until the host has said something, and says whether it has.
func (q *question) awaitWord(ctx context.Context, limit time.Duration) bool {
	const look = 10 * time.Millisecond
	for ; limit > 0 && ctx.Err() == nil && !q.hasWord(); limit -= look {
		clock.Wait(ctx, nil, min(look, limit))
	}
	return q.hasWord()
}

// end gives up a login to which the host has said nothing, by a reset, which does not count
// against the client; another one goes on to its end.
func (q *question) end() {
	if !q.hasWord() {
		q.giveUp()
	}
}
