// settings.go is what a connector is told. It is a copy: what the user's Config
// says of pools and units is not the connector's affair.

package connector

import (
	"log/slog"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/usercode"
)

// Settings are those fields of Config that connections need, of the same names; the
// user's Config explains them.
type Settings struct {
	MySQL *mysql.Config // the connector's own, nil below another driver

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

	CommitTable string
	Classify    func(error) (mysqlerr.Class, bool) // nil where livepool decides
	Log         *slog.Logger                       // never nil, and its panics go no further
}

// PingMode is a PrePing, and has its values.
type PingMode int

const (
	pingOff PingMode = iota
	pingIdle
	pingAlways
)

// BeaconMode is a Beacon, and has its values.
type BeaconMode int

const (
	beaconOff BeaconMode = iota
	beaconAuto
	beaconOn
)

// Of these the connector itself must know whether they were chosen.
const (
	DefaultKeepAlive = 30 * time.Second
	DefaultPingAfter = 500 * time.Millisecond
)

// catchPanic runs code of the user's, and says whether it did not panic.
func (c *Settings) catchPanic(what string, f func()) (ok bool) {
	return usercode.CatchPanic(c.Log, what, f)
}
