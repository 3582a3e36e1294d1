// site.go chooses the server that the lanes work on. What is done to it is
// faults.go's affair.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/lab/server"
)

// site is the server of a run.
type site struct {
	title string        // for a person
	mysql *mysql.Config // how it is reached without a proxy

	// kill and start end the server as a crash does and bring it back on the
	// same data; nil where the run must not, or where nothing would survive it.
	kill, start func() error
	// readOnly has the server refuse writes, or take them again, and killClients
	// kills all connections; nil as kill is.
	readOnly    func(bool) error
	killClients func() error

	// firstLook is the caveat of a server that is no MySQL or MariaDB.
	firstLook string
	close     func() error
}

// String names the server with its caveat.
func (s *site) String() string {
	if s.firstLook == "" {
		return s.title
	}
	return s.title + " (" + s.firstLook + ")"
}

const embeddedCaveat = "embedded first look: no claim about locks, timeouts or restarts"

// findSite returns the user's own server if dsn is set, else one of the kind
// asked for. What takes long is told on w.
func findSite(ctx context.Context, w io.Writer, dsn, kind string) (*site, error) {
	if dsn != "" {
		return ownSite(dsn)
	}
	server.Progress = w
	switch kind {
	case "mariadb", "mariadb-11.8", "mysql":
		return privateSite(ctx, server.Kind(kind))
	case "embedded":
		return embeddedSite(ctx, w)
	case "auto":
	default:
		return nil, usageError(fmt.Sprintf("-server %s: takes auto, mariadb, mariadb-11.8, mysql or embedded", kind))
	}
	for _, kind := range preferredKinds() {
		s, err := privateSite(ctx, kind)
		if err == nil || !errors.Is(err, server.ErrUnavailable) {
			return s, err
		}
		fmt.Fprintf(w, "%v\n", err)
	}
	return embeddedSite(ctx, w)
}

// preferredKinds has MariaDB first, which starts faster and is fetched faster,
// unless only a MySQL is already there.
func preferredKinds() []server.Kind {
	_, noMariaDB := exec.LookPath("mariadbd")
	_, noMySQL := exec.LookPath("mysqld")
	if noMariaDB != nil && noMySQL == nil {
		return []server.Kind{server.MySQL, server.MariaDB}
	}
	return []server.Kind{server.MariaDB, server.MySQL}
}

// ownSite is a server of the user's. It is not restarted, and nobody else's
// connection or table is touched.
func ownSite(dsn string) (*site, error) {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, usageError(fmt.Sprintf("-dsn: %v", err))
	}
	if cfg.Net != "tcp" || cfg.DBName == "" {
		return nil, usageError("-dsn: takes user:password@tcp(host:port)/database: the fault proxy speaks TCP, and the tables need a database")
	}
	return &site{
		title: "the server at " + cfg.Addr,
		mysql: cfg,
		close: func() error { return nil },
	}, nil
}

func privateSite(ctx context.Context, kind server.Kind) (*site, error) {
	s, err := server.Start(ctx, kind, server.Options{})
	if err != nil {
		return nil, err
	}
	cfg, err := mysql.ParseDSN(s.DSN())
	if err != nil {
		s.Close()
		return nil, err
	}
	return &site{
		title: "a private " + kind.Product() + " " + s.Version(),
		mysql: cfg,
		kill:  s.Kill, start: s.Start,
		readOnly: s.SetReadOnly, killClients: s.KillConnections,
		close: s.Close,
	}, nil
}
