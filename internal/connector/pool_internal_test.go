package connector

import (
	"database/sql"
	"database/sql/driver"
	"log/slog"
	"time"
)

type fakeConnector struct{}

// testPool is what a Pool is to its connector: a sql.DB that it serves.
type testPool struct {
	*sql.DB
	ctr *Connector
}

// defaults are those of a Pool, without its log.
func defaults() *Settings {
	return &Settings{
		PoolSize: 10, MaxOverflow: 10, IdleTimeout: 30 * time.Minute,
		Recycle: time.Hour, RecycleJitter: 0.2,
		PrePing: pingIdle, PingAfter: DefaultPingAfter, PingTimeout: time.Second,
		KeepAlive: DefaultKeepAlive, HoldLimit: time.Hour,
		ConnectTimeout: 5 * time.Second, ConnectLimit: 16, OutageWait: 10 * time.Second, CommitTimeout: 10 * time.Second,
		KillAbandoned: true, Beacon: beaconAuto, StallAfter: 5 * time.Second,
		CommitTable: "livepool_commits", Log: slog.New(slog.DiscardHandler),
	}
}

// openTest opens a pool on any driver.
func openTest(c driver.Connector, cfg *Settings) (*testPool, error) {
	ctr, err := New(c, cfg)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(ctr)
	db.SetMaxOpenConns(cfg.MaxOpenConns())
	db.SetMaxIdleConns(cfg.PoolSize)
	db.SetConnMaxIdleTime(cfg.IdleTimeout)
	ctr.ServePool(db, func(int) {})
	ctr.StartMaintainer()
	return &testPool{db, ctr}, nil
}

// testStats are those of a Pool's that the tests look at.
type testStats struct{ Opened, Pinged, Deaths, Leaks int64 }

func (p *testPool) Stats() testStats {
	s := &p.ctr.Stats
	p.ctr.UncountedConns() // which takes the locks that Pool.Stats takes
	p.DB.Stats()
	return testStats{s.Opened.Load(), s.Pings.Load(), s.Deaths.Load(), s.Leaks.Load()}
}
