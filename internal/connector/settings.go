// settings.go has the settings of a connector: a copy of those fields of the user's Config
// that concern connections.

package connector

import (
	"context"
	"database/sql/driver"
	"log/slog"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/usercode"
)

// Settings are fields of Config under the same names, and mean the same. They do not
// change after New.
type Settings struct {
	MySQL *mysql.Config // the connector's own; nil with another driver
	Addrs []string      // of several hosts; nil: that of MySQL
	// AsksRole: a host is asked for its role, also if it is the only one.
	AsksRole bool
	Target   hosts.Target
	MaxLag   time.Duration

	PoolSize, MaxOverflow, MinIdle int
	IdleTimeout                    time.Duration
	Recycle                        time.Duration
	RecycleJitter                  float64

	PrePing                PingMode
	PingAfter, PingTimeout time.Duration
	KeepAlive, HoldLimit   time.Duration

	ConnectTimeout, OutageWait, CommitTimeout time.Duration
	ConnectLimit                              int

	KillAbandoned         bool
	Beacon                BeaconMode
	StallAfter, LeakAfter time.Duration

	CommitTable   string
	ExplicitBegin bool
	Wrap          func(driver.Connector) driver.Connector                                     // nil for none
	AfterConnect  func(ctx context.Context, exec func(query string, args ...any) error) error // nil for none
	Classify      func(error) (mysqlerr.Class, bool)                                          // nil where livepool decides
	Tracer        any                                                                         // of the package trace; nil for none
	Log           *slog.Logger                                                                // never nil; its panics go no further

	// CheckContext says why a request under ctx is refused that is not a session's, nil if
	// it is not. It is nil without a Pool, which sets it before anything is connected.
	CheckContext func(ctx context.Context) error
	// HasPrimary: what no replica serves, a pool on the primary does. A Pool sets it before
	// anything is connected.
	HasPrimary bool
}

// PingMode has the values of the root's PrePing.
type PingMode int

const (
	pingOff PingMode = iota
	pingIdle
	pingAlways
)

// BeaconMode has the values of the root's Beacon.
type BeaconMode int

const (
	beaconOff BeaconMode = iota
	beaconAuto
	beaconOn
)

// Defaults, by which the connector tells whether the user set the value.
const (
	DefaultKeepAlive = 30 * time.Second
	DefaultPingAfter = 500 * time.Millisecond
)

// catchPanic runs f, which calls code of the user's. ok means that it did not panic.
func (c *Settings) catchPanic(what string, f func()) (ok bool) {
	return usercode.CatchPanic(c.Log, what, f)
}
