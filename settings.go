// settings.go is what a connector is told. It is a copy: what the user's Config
// says of pools and units is not the connector's affair.

package livepool

import (
	"log/slog"
	"time"

	"github.com/go-sql-driver/mysql"
)

// settings are those fields of Config that connections need, of the same names; the
// user's Config explains them.
type settings struct {
	MySQL *mysql.Config // the connector's own, nil below another driver

	PoolSize, MaxOverflow, MinIdle int
	IdleTimeout                    time.Duration
	Recycle                        time.Duration
	RecycleJitter                  float64

	PrePing                pingMode
	PingAfter, PingTimeout time.Duration
	KeepAlive, HoldLimit   time.Duration

	ConnectTimeout, OutageWait, CommitTimeout time.Duration
	ConnectLimit                              int

	KillAbandoned         bool
	Beacon                beaconMode
	StallAfter, LeakAfter time.Duration

	CommitTable string
	Classify    func(error) (Class, bool) // nil where livepool decides
	Log         *slog.Logger              // never nil, and its panics go no further
}

// pingMode is a PrePing, and has its values.
type pingMode int

const (
	pingOff pingMode = iota
	pingIdle
	pingAlways
)

// beaconMode is a Beacon, and has its values.
type beaconMode int

const (
	beaconOff beaconMode = iota
	beaconAuto
	beaconOn
)

// Of these the connector itself must know whether they were chosen.
const (
	defaultKeepAlive = 30 * time.Second
	defaultPingAfter = 500 * time.Millisecond
)

// contain runs code of the user's, and says whether it did not panic.
func (c *settings) contain(what string, f func()) (ok bool) { return contain(c.Log, what, f) }
