package main

// This file has the suites' pools opened by livepool: what the compiler is given in place of some
// files of database/sql, of livepool and of the suite.

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// An edit changes a file as the compiler sees it.
type edit struct {
	file     string // in the package's directory
	from, to string // a regular expression that matches somewhere, and its replacement
	add      string // what is appended
}

func (e edit) apply(text string) (string, error) {
	from, err := regexp.Compile(e.from)
	if err != nil {
		return "", err
	}
	if !from.MatchString(text) {
		return "", fmt.Errorf("the edit of %s fits no longer: nothing matches %s", e.file, e.from)
	}
	return from.ReplaceAllString(text, e.to) + e.add, nil
}

// sqlEdits make database/sql ask the two hooks, if they are set. All suites share them, so that
// the compiler's cache holds one such database/sql.
var sqlEdits = []edit{
	{file: "sql.go", from: `func OpenDB\(c driver\.Connector\) \*DB \{`, to: `$0
	if ConformanceOpenDB != nil {
		c = ConformanceOpenDB(c)
	}`},
	{file: "sql.go", from: `func Open\(driverName, dataSourceName string\) \(\*DB, error\) \{`, to: `$0
	if ConformanceOpen != nil {
		if db, err := ConformanceOpen(driverName, dataSourceName); db != nil || err != nil {
			return db, err
		}
	}`, add: `
var (
	ConformanceOpen   func(driverName, dataSourceName string) (*DB, error)
	ConformanceOpenDB func(driver.Connector) driver.Connector
)
`},
}

// throughLivepool sets the hooks: sql.Open of MySQL is livepool.Open, and other connectors get
// livepool around them. It notes each pool in a file, which proves that livepool was in use.
const throughLivepool = `package PACKAGE

import (
	stdsql "database/sql" // names that no suite has
	stddriver "database/sql/driver"
	"os"
	"reflect"
	"strings"

	"github.com/livepool/livepool"
)

var _ = throughLivepool(os.Getenv("` + hooksEnv + `")) // before any init function, in which some suites connect

func throughLivepool(pools string) bool {
	if pools == "" {
		return false
	}
	stdsql.ConformanceOpen = func(driverName, dsn string) (*stdsql.DB, error) {
		if driverName != "mysql" {
			return nil, nil
		}
		pool, err := livepool.Open(dsn)
		if err != nil {
			return nil, err
		}
		return pool.DB, nil
	}
	stdsql.ConformanceOpenDB = func(c stddriver.Connector) stddriver.Connector {
		f, err := os.OpenFile(pools, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0600)
		if err != nil {
			panic(err)
		}
		defer f.Close()
		f.WriteString(".")
		kind := reflect.TypeOf(c)
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		if strings.HasPrefix(kind.PkgPath(), "github.com/livepool/livepool/") {
			return c
		}
		wrapped, err := livepool.NewConnector(c, nil)
		if err != nil {
			panic(err)
		}
		return wrapped
	}
	return true
}
`

// hooksEnv names the file in which the pools are noted. If it is not set, the program runs on plain
// database/sql.
const hooksEnv = "CONFORMANCE_POOLS"

// bare lets the tests of database/sql at the parts of their fake driver that livepool has wrapped.
const bare = `package connector

func (c *Connector) Bare() any   { return c.driverConnector }
func (c *conn) Bare() any        { return c.driverConn.Conn }
func (t *tx) Bare() any          { return t.driverTx }
func (r *wrappedRows) Bare() any { return r.Rows }
`

// makeEdits adds to texts the files in dir that the edits change, as they are then.
func makeEdits(texts map[string]string, dir string, edits []edit) error {
	for _, e := range edits {
		file := filepath.Join(dir, e.file)
		if texts[file] == "" {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			texts[file] = string(text)
		}
		text, err := e.apply(texts[file])
		if err != nil {
			return err
		}
		texts[file] = text
	}
	return nil
}

// writeOverlay writes texts, and the file that tells the compiler which files they replace.
func writeOverlay(dir string, texts map[string]string) (path string, err error) {
	replace := map[string]string{}
	for file, text := range texts {
		replace[file] = filepath.Join(dir, fmt.Sprintf("overlay-%d.go", len(replace)))
		if err := os.WriteFile(replace[file], []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, list, 0o600)
}
