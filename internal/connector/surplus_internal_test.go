package connector

import (
	"context"
	"database/sql/driver"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slowConnectDB is a database whose connections may take their time, and are counted.
type slowConnectDB struct {
	exclusiveDB
	connectDelay atomic.Int64
	openCount    atomic.Int64
}

type countedConn struct {
	driver.Conn
	l *slowConnectDB
}

func (c *countedConn) Close() error { c.l.openCount.Add(-1); return c.Conn.Close() }

func (l *slowConnectDB) Connect(ctx context.Context) (driver.Conn, error) {
	time.Sleep(time.Duration(l.connectDelay.Load()))
	c, err := l.exclusiveDB.Connect(ctx)
	l.openCount.Add(1)
	return &countedConn{c, l}, err
}

// A connection that came late is closed when it is surplus, also where nothing else
// is to be looked after.
func TestSurplusSpareIsClosedWhereNothingElseIsDue(t *testing.T) {
	for _, keepAlive := range []time.Duration{30 * time.Second, 0} {
		synctest.Test(t, func(t *testing.T) {
			l := &slowConnectDB{}
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
			l.connectDelay.Store(int64(3 * time.Second))
			for range 5 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				go p.ExecContext(ctx, "DO 1")
				defer cancel()
			}
			time.Sleep(time.Hour)
			if l.openCount.Load() != 1 {
				t.Errorf("keepalive %s: %d open after an hour, of which one is used", keepAlive, l.openCount.Load())
			}
			c.Close()
		})
	}
}
