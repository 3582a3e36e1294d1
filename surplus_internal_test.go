package livepool

import (
	"context"
	"database/sql/driver"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// late is a database whose connections may take their time, and are counted.
type late struct {
	lone
	takes atomic.Int64
	opens atomic.Int64
}

type lateConn struct {
	driver.Conn
	l *late
}

func (c *lateConn) Close() error { c.l.opens.Add(-1); return c.Conn.Close() }

func (l *late) Connect(ctx context.Context) (driver.Conn, error) {
	time.Sleep(time.Duration(l.takes.Load()))
	c, err := l.lone.Connect(ctx)
	l.opens.Add(1)
	return &lateConn{c, l}, err
}

// A connection that came late is closed when it is surplus, also where nothing else
// is to be looked after.
func TestSurplusSpareIsClosedWhereNothingElseIsDue(t *testing.T) {
	for _, keepAlive := range []time.Duration{30 * time.Second, 0} {
		synctest.Test(t, func(t *testing.T) {
			l := &late{}
			cfg := defaults()
			cfg.KeepAlive, cfg.Recycle, cfg.PoolSize = keepAlive, 0, 1
			p, err := openTest(l, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			c, err := p.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			l.takes.Store(int64(3 * time.Second))
			for range 5 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				go p.ExecContext(ctx, "DO 1")
				defer cancel()
			}
			time.Sleep(time.Hour)
			if l.opens.Load() != 1 {
				t.Errorf("keepalive %s: %d open after an hour, of which one is used", keepAlive, l.opens.Load())
			}
			c.Close()
		})
	}
}
