// ping.go has the setting that says when a connection is pinged. internal/connector
// carries it out: at a checkout in ping.go, in the background in maintain.go; both fit
// it to the server's wait_timeout (waittimeout.go).

package livepool

import "github.com/livepool/livepool/internal/setting"

// PrePing says when a connection is pinged at checkout.
type PrePing int

const (
	// PrePingOff sends no ping at checkout. A connection is still looked at
	// without a round trip, and one that a timeout elsewhere has made suspect
	// is not handed out.
	PrePingOff PrePing = iota
	// PrePingIdle, the default, pings a connection that has not completed a
	// round trip within PingAfter, or since the pool last saw a connection die.
	// A connection that cannot be looked at without a round trip (on Windows,
	// or through a dialer whose net.Conn is no syscall.Conn) is pinged at every
	// checkout.
	PrePingIdle
	// PrePingAlways pings at every checkout.
	PrePingAlways
)

// String returns the DSN's word for p.
func (p PrePing) String() string { return setting.NameOf(prePingNames, p, "PrePing") }

// The words a DSN may use; the first that names a value is how it prints.
var prePingNames = []setting.Word[PrePing]{
	{Name: "idle", Value: PrePingIdle}, {Name: "true", Value: PrePingIdle}, {Name: "1", Value: PrePingIdle}, {Name: "on", Value: PrePingIdle},
	{Name: "always", Value: PrePingAlways},
	{Name: "off", Value: PrePingOff}, {Name: "false", Value: PrePingOff}, {Name: "0", Value: PrePingOff},
}
