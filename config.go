// config.go holds the settings: their defaults, their DSN names and what they
// may be. It opens nothing.

package livepool

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/connector"
	"github.com/livepool/livepool/internal/dsntext"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/setting"
	"github.com/livepool/livepool/internal/usercode"
)

// Beacon says whether a connection takes a named lock at birth, by which it
// can be recognised behind a proxy or NAT.
type Beacon int

const (
	// BeaconOff takes no lock. A connection whose port on the server is not its
	// own, or that has none, is then never killed, for want of proof.
	BeaconOff Beacon = iota
	// BeaconAuto, the default, takes the lock only where the port the server
	// sees is not the connection's own.
	BeaconAuto
	// BeaconOn takes the lock on every connection: one round trip at birth.
	BeaconOn
)

// String returns the DSN's word for b.
func (b Beacon) String() string { return setting.NameOf(beaconNames, b, "Beacon") }

// The words a DSN may use; the first that names a value is how it prints.
var beaconNames = []setting.Word[Beacon]{{Name: "off", Value: BeaconOff}, {Name: "auto", Value: BeaconAuto}, {Name: "on", Value: BeaconOn}}

// Target says which of several hosts a pool connects to. A server's role is asked at each
// login, by read_only, super_read_only and innodb_read_only.
type Target int

const (
	// TargetPrimary, the default, is the host that takes writes. A single host is asked for
	// its role if it is in Config.Addrs; in a DSN, if pool_target is.
	TargetPrimary Target = iota
	// TargetReplica is any host that takes no writes.
	TargetReplica
	// TargetPreferReplica is TargetReplica, or where there is none, the primary.
	TargetPreferReplica
	// TargetAny is any host, such as each node of a cluster that writes everywhere.
	TargetAny
)

// String returns the DSN's word for t.
func (t Target) String() string { return setting.NameOf(targetNames, t, "Target") }

var targetNames = []setting.Word[Target]{
	{Name: "primary", Value: TargetPrimary}, {Name: "replica", Value: TargetReplica},
	{Name: "prefer-replica", Value: TargetPreferReplica}, {Name: "any", Value: TargetAny},
}

// Config holds the settings of a Pool. NewConfig and ParseDSN fill in the
// defaults, so a zero in a Config means zero. A Config is copied when a pool is
// opened; changing it afterwards changes nothing.
//
// In a DSN a duration is a Go duration ("1h", "500ms") or plain seconds
// ("3600").
type Config struct {
	// MySQL holds the driver's own settings: in a DSN, everything that does not
	// begin with pool_. livepool works on a copy and changes four things in it:
	// its dialer is put around DialFunc, and where that is so, its own look at
	// the socket takes the place of CheckConnLiveness; RejectReadOnly is off, for
	// livepool itself sends elsewhere what a read-only server refuses, if no part
	// of it can have run; and the driver's Logger is silent while the server
	// cannot be reached, which livepool logs itself. What the driver's default logger
	// would write to standard error goes to Logger below, at debug level.
	MySQL *mysql.Config
	// Addrs are the addresses of hosts, all reached by MySQL.Net, of which the pool uses those
	// that Target asks for; in a DSN a list, as in tcp(db1:3306,db2,[::1]:3307). Each address
	// of a name is a host. The default is MySQL.Addr alone, whatever its role.
	Addrs []string
	// Target (pool_target) is what the pool wants of a host, default TargetPrimary.
	Target Target
	// MaxLag (pool_max_lag) is how far a replica may be behind to be used, in whole seconds as
	// servers tell it, default 0: it is not asked. One whose replication has stopped is not
	// used then either. It needs the privilege REPLICATION CLIENT (MariaDB: REPLICA MONITOR),
	// and applies where Target asks for replicas, and to FromReplica.
	MaxLag time.Duration

	// PoolSize (pool_size) is how many connections are kept, default 10. With 0
	// none is kept: each is closed when it is returned.
	PoolSize int
	// MaxOverflow (pool_max_overflow) is how many more may be open under load,
	// default 10; they are closed on return. -1: no limit.
	MaxOverflow int
	// PoolTimeout (pool_timeout) is how long a session waits for a connection,
	// default 30s. 0: it does not wait.
	PoolTimeout time.Duration
	// MinIdle (pool_min_idle) is how many idle connections are kept ready ahead
	// of demand, default 0, at most PoolSize, beyond which none is opened for it.
	// They are opened in the background, beginning with Open.
	MinIdle int
	// IdleTimeout (pool_idle_timeout) closes a connection that nobody has used
	// for so long, default 30m, never below MinIdle. 0: never.
	IdleTimeout time.Duration

	// Recycle (pool_recycle) is the greatest age of a connection, default 1h.
	// One in use at that age is closed when it is returned. 0: no limit.
	Recycle time.Duration
	// RecycleJitter (pool_recycle_jitter) cuts each connection's age limit by a
	// random share of up to this, fixed when it is opened, so that connections
	// born together do not die together. Default 0.2; from 0 to 1.
	RecycleJitter float64

	// PrePing (pool_pre_ping) is when a connection is pinged at checkout,
	// default PrePingIdle.
	PrePing PrePing
	// PingAfter (pool_ping_after) is how long PrePingIdle trusts a completed
	// round trip, default 500ms, and at most half of the server's wait_timeout.
	// Where answers take longer than half of PingTimeout it grows with them, up
	// to ten times and KeepAlive.
	PingAfter time.Duration
	// PingTimeout (pool_ping_timeout) is how long a caller waits for the answer to
	// a ping, default 1s. After that the connection, and others that have not
	// answered since, are suspect: they are dead if they stay silent while the
	// server speaks on another connection, or for ten times as long. Where answers
	// are slow it grows with them, up to five times.
	PingTimeout time.Duration
	// KeepAlive (pool_keepalive) is how often idle connections are pinged in the
	// background, default 30s, and not less often than three times within the
	// server's wait_timeout. 0: never.
	KeepAlive time.Duration
	// HoldLimit (pool_hold_limit) is how long a connection whose holder sends
	// nothing, a unit's function that calls a slow service, say, is kept alive as
	// an idle one is, default 1h. After that it is reported, and left to the
	// server's wait_timeout. It needs a Pool, livepool's dialer and KeepAlive; a
	// result that is being read is not kept alive, and neither is a connection
	// after sql.Conn.Raw has taken the driver's own from it. 0: never.
	HoldLimit time.Duration

	// ConnectTimeout (pool_connect_timeout) bounds the opening of a connection:
	// dial, handshake and login together, default 5s, or the driver's own timeout
	// if that is longer and this one is not set. An attempt that the server has
	// accepted and not answered by then may go on for the pool.
	ConnectTimeout time.Duration
	// A DSN said so, even if what it said is the default.
	connectTimeoutGiven, targetGiven bool
	// ConnectLimit (pool_connect_limit) is how many connections are opened at a
	// time, for all callers, default 16. After trouble it begins with two, and
	// grows as long as they are opened quickly.
	ConnectLimit int
	// OutageWait (pool_outage_wait) is how long a statement outside sessions waits
	// for a server that cannot be reached, or takes no more connections, within its
	// context, default 10s. 0: not at all. Sessions wait within PoolTimeout and
	// MaxElapsed; a ping does not wait.
	OutageWait time.Duration
	// CommitTimeout (pool_commit_timeout) bounds COMMIT and ROLLBACK, default
	// 10s. One that the server is seen to work on, as under FLUSH TABLES WITH READ
	// LOCK or until a replica has acknowledged it, is waited for: until the server
	// ends it (lock_wait_timeout), it cannot be asked any more, or the pool is
	// closed. That needs what StallAfter needs.
	CommitTimeout time.Duration

	// KillAbandoned (pool_kill_abandoned) ends what a connection that was given
	// up still runs on the server, default true. It needs livepool's dialer and
	// the MySQL driver.
	KillAbandoned bool
	// Beacon (pool_beacon) is how a connection proves its identity behind a
	// proxy, default BeaconAuto.
	Beacon Beacon
	// StallAfter (pool_stall_after) is when a statement without a reply is
	// looked up on the server, default 5s. One that the server works on is waited
	// for, however long it takes. It needs a Pool, livepool's dialer and the MySQL
	// driver. 0: never.
	StallAfter time.Duration
	// LeakAfter (pool_leak_after) reports a connection or session that is held
	// longer, default 0: off.
	LeakAfter time.Duration

	// Strict (pool_strict) refuses a statement of the Pool itself under the context of one
	// of its units: it would run outside the unit's transaction, on another connection.
	// Default false: it runs, and is logged once for each unit's name. It needs a Pool.
	Strict bool
	// MaxAttempts (pool_max_attempts) is how often one unit of work is tried,
	// default 10; 1 never retries.
	MaxAttempts int
	// MaxElapsed (pool_max_elapsed) is after how long a unit of work is not
	// tried again, default 30s; what its function does before it asks for a
	// connection is not counted. A lost COMMIT of a unit with a key is looked up for
	// as long from then on, and CommitTimeout more. 0: no limit.
	MaxElapsed time.Duration
	// BackOff makes the waits between the attempts of one unit. Default:
	// exponential from 20ms to 2s with full jitter. Nil means the default.
	BackOff func() backoff.BackOff
	// CommitTable (pool_commit_table) is the table of committed keys, default
	// livepool_commits; a name in the DSN's schema, or schema.name.
	CommitTable string
	// ExplicitBegin (pool_begin=explicit) sends BEGIN for each unit, default false
	// (pool_begin=auto): a connection that serves units only has autocommit turned off,
	// so that the first statement of a unit begins its transaction.
	ExplicitBegin bool

	// Wrap is called at Open with each of the driver's two connectors, one of which is for
	// the few connections by which livepool asks and kills, and returns the one to use in its
	// place: a tracing wrapper, for example, which so sees what is sent, pings and kills too.
	// Its connections must have the optional interfaces that the driver's have, and the
	// contexts and errors that it passes on keep what they wrap. Default nil.
	Wrap func(driver.Connector) driver.Connector
	// AfterConnect sets up the session of each new connection of the pool before it is used, for
	// example by SET ROLE, within ConnectTimeout: what cannot be said by the DSN's variables.
	// exec runs a statement on it, and refuses to once AfterConnect has returned. What is set is
	// not undone when the connection is returned; a transaction must not be left open. An error
	// closes the connection and is that of the caller who waits for it. Default nil.
	AfterConnect func(ctx context.Context, exec func(query string, args ...any) error) error
	// Tracer is told what the pool does: units, connections, retries, commits, pings, kills,
	// outages. It has one or more of the interfaces of the package trace, or is a trace.All of
	// several; a value with none of them is an error at Open. Default nil.
	Tracer any
	// Classify overrides what an error means, for a server or proxy that
	// livepool does not know; it returns false for an error that it leaves to
	// livepool. It is called from many goroutines. Default nil.
	Classify func(error) (Class, bool)
	// Logger gets livepool's log lines. Nil means slog.Default(). A panic in it, or in
	// another function of the Config, is reported and goes no further.
	Logger *slog.Logger

	log *slog.Logger // Logger with its panics caught; set in the pool's copy
}

const defaultConnectTimeout = 5 * time.Second

// NewConfig returns the defaults. MySQL is not set.
func NewConfig() *Config {
	return &Config{
		PoolSize:       10,
		MaxOverflow:    10,
		PoolTimeout:    30 * time.Second,
		IdleTimeout:    30 * time.Minute,
		Recycle:        time.Hour,
		RecycleJitter:  0.2,
		PrePing:        PrePingIdle,
		PingAfter:      connector.DefaultPingAfter,
		PingTimeout:    time.Second,
		KeepAlive:      connector.DefaultKeepAlive,
		HoldLimit:      time.Hour,
		ConnectTimeout: defaultConnectTimeout,
		ConnectLimit:   16,
		OutageWait:     10 * time.Second,
		CommitTimeout:  10 * time.Second,
		KillAbandoned:  true,
		Beacon:         BeaconAuto,
		StallAfter:     5 * time.Second,
		MaxAttempts:    10,
		MaxElapsed:     30 * time.Second,
		BackOff:        defaultBackOff,
		CommitTable:    "livepool_commits",
	}
}

// defaultBackOff is exponential from 20ms to 2s with full jitter: a wait is
// anything between nothing and twice its step, so that units that failed
// together do not come back together.
func defaultBackOff() backoff.BackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(20*time.Millisecond),
		backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(1),
		backoff.WithMaxInterval(time.Second),
		backoff.WithMaxElapsedTime(0),
	)
}

// validate reports the first setting that is out of its range and the first
// pair that contradict each other.
func (c *Config) validate() error {
	if err := params.Check(c); err != nil {
		return err
	}
	if c.MySQL != nil {
		if err := params.FindMisplaced(c.MySQL.Params); err != nil {
			return err
		}
	}
	if _, err := c.hosts(); err != nil {
		return err
	}
	switch {
	case c.PoolSize == 0 && c.MaxOverflow == 0:
		return errors.New("livepool: PoolSize (pool_size) and MaxOverflow (pool_max_overflow) are both 0, " +
			"so that no connection could ever be opened: raise one of them")
	case c.MinIdle > c.PoolSize:
		return fmt.Errorf("livepool: MinIdle (pool_min_idle) is %d, above PoolSize (pool_size), which is %d: "+
			"a pool cannot keep more connections ready than it keeps", c.MinIdle, c.PoolSize)
	}
	return nil
}

// asksRole says whether a host is asked for its role, also if it is the only one.
func (c *Config) asksRole() bool { return c.targetGiven || len(c.Addrs) > 0 }

// hosts are Addrs with their ports.
func (c *Config) hosts() ([]string, error) {
	my := c.MySQL
	if len(c.Addrs) == 0 || my == nil {
		return nil, nil
	}
	all, err := dsntext.Hosts(my.Net, c.Addrs)
	if err != nil || my.Addr == "" {
		return all, err
	}
	if first, err := dsntext.Hosts(my.Net, []string{my.Addr}); err != nil || first[0] != all[0] {
		return nil, errors.New("livepool: Config.Addrs and Config.MySQL.Addr contradict each other: set Addrs alone, or let Addr be the first of them")
	}
	return all, nil
}

// clone copies the settings, so that the caller's Config stays the caller's.
func (c *Config) clone() *Config {
	copied := *c
	if c.MySQL != nil {
		copied.MySQL = c.MySQL.Clone()
		copied.Addrs, _ = c.hosts() // which validate has read
	}
	if copied.BackOff == nil {
		copied.BackOff = defaultBackOff
	}
	copied.log = usercode.Logger(c.Logger)
	return &copied
}

// settings is what the connector needs of them.
func (c *Config) settings() *connector.Settings {
	return &connector.Settings{
		MySQL:          c.MySQL,
		Addrs:          c.Addrs,
		AsksRole:       c.asksRole(),
		Target:         hosts.Target(c.Target),
		MaxLag:         c.MaxLag,
		PoolSize:       c.PoolSize,
		MaxOverflow:    c.MaxOverflow,
		MinIdle:        c.MinIdle,
		IdleTimeout:    c.IdleTimeout,
		Recycle:        c.Recycle,
		RecycleJitter:  c.RecycleJitter,
		PrePing:        connector.PingMode(c.PrePing),
		PingAfter:      c.PingAfter,
		PingTimeout:    c.PingTimeout,
		KeepAlive:      c.KeepAlive,
		HoldLimit:      c.HoldLimit,
		ConnectTimeout: c.ConnectTimeout,
		OutageWait:     c.OutageWait,
		CommitTimeout:  c.CommitTimeout,
		ConnectLimit:   c.ConnectLimit,
		KillAbandoned:  c.KillAbandoned,
		Beacon:         connector.BeaconMode(c.Beacon),
		StallAfter:     c.StallAfter,
		LeakAfter:      c.LeakAfter,
		CommitTable:    c.CommitTable,
		ExplicitBegin:  c.ExplicitBegin,
		Wrap:           c.Wrap,
		AfterConnect:   c.AfterConnect,
		Tracer:         c.Tracer,
		Classify:       c.classifier(),
		Log:            c.log,
	}
}

// classifier is Classify in the connector's terms, nil if there is none.
func (c *Config) classifier() func(error) (mysqlerr.Class, bool) {
	if c.Classify == nil {
		return nil
	}
	return func(err error) (mysqlerr.Class, bool) {
		class, decided := c.Classify(err)
		return mysqlerr.Class(class), decided
	}
}

// String returns the settings without the password: livepool's, and the address, user
// and database of the driver's.
func (c Config) String() string {
	text := params.Show(&c)
	if my := c.MySQL; my != nil {
		addrs := cmp.Or(strings.Join(c.Addrs, ","), my.Addr)
		text = fmt.Sprintf("%s@%s(%s)/%s %s", my.User, my.Net, addrs, my.DBName, text)
	}
	return text
}

// GoString is String: %#v would show the password.
func (c Config) GoString() string { return "livepool.Config{" + c.String() + "}" }

// LogValue is String, for slog.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// RefusedLogin is for a BeforeConnect of the driver's that keeps credentials for a while (a
// token of a cloud's, a lease of a secret store's): the error by which the server has just
// refused those that it gave, so that new ones must be had; nil where it may give what it
// has. Each login is tried once more after such a refusal; of many that are refused at once
// one asks, and no more than one in a second.
func RefusedLogin(ctx context.Context) error { return connector.RefusedLogin(ctx) }
