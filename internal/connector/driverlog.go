// driverlog.go is where the driver's own log lines go.

package connector

import (
	"cmp"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"os"

	"github.com/go-sql-driver/mysql"
)

// driverLogger is what the driver logs to in place of given. Its default writes to standard
// error each connection that it loses, which livepool tells in its own words: these lines go
// to livepool's logger.
func (ctr *Connector) driverLogger(given mysql.Logger) mysql.Logger {
	given = cmp.Or(given, mysql.NewConfig().Logger) // as mysql.SetLogger has set it
	if l, ok := given.(*log.Logger); ok && l.Prefix() == "[mysql] " && l.Writer() == os.Stderr {
		return debugLogger{ctr}
	}
	return &quietLogger{given, ctr}
}

// debugLogger is livepool's logger for the driver.
type debugLogger struct{ ctr *Connector }

func (l debugLogger) Print(v ...any) {
	if isOwnClose(v) {
		return
	}
	l.ctr.Cfg.Log.Debug("livepool: the driver says: "+fmt.Sprint(v...), slog.String("addr", l.ctr.addr))
}

// quietLogger is the user's logger for the driver, without what the driver would log at
// every attempt to connect during an outage.
type quietLogger struct {
	mysql.Logger
	ctr *Connector
}

func (h *quietLogger) Print(v ...any) {
	if !h.ctr.Outage.IsDown() && !isOwnClose(v) {
		h.ctr.Cfg.catchPanic("Config.MySQL.Logger", func() { h.Logger.Print(v...) })
	}
}

// isOwnClose says whether the driver logs that livepool has closed the connection, as it does
// when a caller's context ends.
func isOwnClose(v []any) bool {
	if len(v) == 0 {
		return false
	}
	err, ok := v[len(v)-1].(error)
	return ok && errors.Is(err, net.ErrClosed)
}
