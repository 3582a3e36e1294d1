// side.go is the connection that asks the server about others.

package proclist

import (
	"context"
	"strconv"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/wire"
)

// Side is a connection that asks the server about others, and kills their threads. One
// goroutine uses it. Who opens it sets the exported fields, and calls Identify.
type Side struct {
	Conn     *driverconn.Conn
	Wire     *wire.Conn // nil where livepool's dialer is not in use
	Borrowed bool       // it is one of the pool's, which somebody may wait for
	// Close closes it, or returns it. err is the error of the last question, nil if it was
	// answered.
	Close func(err error)

	// Identify sets these. Where the server refuses to say, only a beacon proves anything.
	identity      *Identity
	view          View
	direct        bool          // the server sees its own port
	serverStarted time.Duration // -clock.Never if the server does not say
}

// Identify stores what the server says of itself, and asks for what the process list shows
// of the Side and for how long the server has been up.
func (s *Side) Identify(ctx context.Context, clk *clock.Clock, identity *Identity) (err error) {
	s.identity, s.serverStarted = identity, -clock.Never
	if s.view, err = QueryView(ctx, s.Conn); err != nil {
		return err
	}
	s.direct = s.view.IsDirect(s.Wire) && identity.IsHandshakeID(s.Wire)
	row, err := s.Conn.QueryRow(ctx, "SHOW GLOBAL STATUS LIKE 'Uptime'")
	if err != nil {
		return err
	}
	if seconds, err := strconv.Atoi(row[len(row)-1]); err == nil {
		s.serverStarted = clk.Now() - time.Duration(seconds)*time.Second
	}
	return nil
}

// allowsMultiStatements says whether several statements may be sent at a time.
func (s *Side) allowsMultiStatements() bool { return s.Wire != nil && s.Wire.MultiStatements }
