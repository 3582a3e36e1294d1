package fakedb

import (
	"context"
	"database/sql/driver"
	"io"
	"strings"
	"sync/atomic"
)

// Host is a DB that says what it is, as one of several hosts. It is to be had through
// Wrap.
type Host struct {
	DB
	Name     string       // it says who it is; "": it refuses to
	IsNode   bool         // it says that it is a node of a Galera cluster
	ReadOnly atomic.Bool  // what it says of its role
	Asked    atomic.Int64 // how often it was asked for its role
	Queries  atomic.Int64 // how many queries it was sent

	// Lag is what it says of Seconds_Behind_Source, "" for NULL; nil: it has no source.
	Lag atomic.Pointer[string]

	// OnRole, when set, runs before it says its role, and may refuse to.
	OnRole func(ctx context.Context) error
	// OnQuery, when set, answers all other queries by a row, or by an error.
	OnQuery func(query string) ([]string, error)
}

// Wrap is a Wrap of a pool's Config by which its hosts are these, in their order. A pool gives
// it two connectors of each.
func Wrap(hosts ...*Host) func(driver.Connector) driver.Connector {
	n := 0
	return func(driver.Connector) driver.Connector {
		h := hosts[n/2]
		n++
		return h
	}
}

// Connect opens a connection that says what the host is.
func (h *Host) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := h.DB.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &hostConn{c.(*Conn), h}, nil
}

type hostConn struct {
	*Conn
	host *Host
}

// What else the connections of the MySQL driver can do.
func (c *hostConn) PrepareContext(_ context.Context, query string) (driver.Stmt, error) {
	return c.Prepare(query)
}
func (c *hostConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) { return c.Begin() }

func (c *hostConn) QueryContext(ctx context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	if query == "SHOW REPLICA STATUS" {
		lag := c.host.Lag.Load()
		if lag == nil {
			return &textRow{read: true}, nil
		}
		return &textRow{names: []string{"Seconds_Behind_Source"}, row: []string{*lag}}, nil
	}
	row, err := c.host.answer(ctx, query)
	if err != nil {
		return nil, err
	}
	return &textRow{names: make([]string, len(row)), row: row}, nil
}

// answer is the answer to a query. Of itself a host says what a server says that is like it.
func (h *Host) answer(ctx context.Context, query string) (row []string, err error) {
	h.Queries.Add(1)
	asksFacts := strings.HasPrefix(query, "SELECT CONCAT_WS('/', @@hostname")
	asksRole := strings.Contains(query, "@@GLOBAL.read_only")
	switch {
	case (asksFacts || asksRole) && (!asksFacts || h.Name != ""):
		if asksFacts {
			row = []string{h.Name, "1", "app@localhost", "8.0.0", "28800", "0", "67108864", "one-thread-per-connection", "1", "0"}
		}
		if asksRole {
			role, err := h.role(ctx)
			return append(row, role...), err
		}
		return row, nil
	case strings.HasPrefix(query, "SELECT p.USER, p.HOST") && h.IsNode:
		return []string{"app", "localhost", "ON"}, nil
	case strings.HasPrefix(query, "SELECT p.USER, p.HOST") && h.Name != "":
		return []string{"app", "localhost"}, nil
	case h.OnQuery != nil:
		return h.OnQuery(query)
	}
	return nil, ServerError(1227, "Access denied: "+query)
}

// role is what it says of its role.
func (h *Host) role(ctx context.Context) ([]string, error) {
	h.Asked.Add(1)
	if h.OnRole != nil {
		if err := h.OnRole(ctx); err != nil {
			return nil, err
		}
	}
	if h.ReadOnly.Load() {
		return []string{"1", "0", "0"}, nil
	}
	return []string{"0", "0", "0"}, nil
}

// textRow is a result of one row.
type textRow struct {
	names, row []string
	read       bool
}

func (r *textRow) Columns() []string { return r.names }
func (r *textRow) Close() error      { return nil }
func (r *textRow) Next(dest []driver.Value) error {
	if r.read {
		return io.EOF
	}
	r.read = true
	for i, value := range r.row {
		dest[i] = []byte(value)
	}
	return nil
}
