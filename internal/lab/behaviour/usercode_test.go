package behaviour_test

import (
	"database/sql/driver"
	"fmt"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// What the driver's README shows for the results of several statements works on
// the connection that sql.Conn.Raw gives.
func TestRawConnectionRunsStatementsAsTheDriversDoes(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := open(t, s.DSN(), "multiStatements=true")
		if _, err := p.Exec("CREATE TABLE raw (id INT)"); err != nil {
			t.Fatal(err)
		}
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		err = c.Raw(func(dc any) error {
			//lint:ignore SA1019 as the driver shows it
			res, err := dc.(driver.Execer).Exec("INSERT INTO raw VALUES (1), (2); INSERT INTO raw VALUES (3)", nil)
			if err != nil {
				return err
			}
			if got := fmt.Sprint(res.(mysql.Result).AllRowsAffected()); got != "[2 1]" {
				t.Errorf("rows affected by each statement: %s, want [2 1]", got)
			}
			//lint:ignore SA1019 as the driver shows it
			rows, err := dc.(driver.Queryer).Query("SELECT COUNT(*) FROM raw", nil)
			if err != nil {
				return err
			}
			defer rows.Close()
			row := make([]driver.Value, 1)
			if err := rows.Next(row); err != nil || fmt.Sprintf("%s", row[0]) != "3" && fmt.Sprint(row[0]) != "3" {
				t.Errorf("got %v, %v, want 3 rows in the table", row[0], err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}
