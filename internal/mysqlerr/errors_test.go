package mysqlerr

import (
	"errors"
	"fmt"
	"testing"

	"github.com/go-sql-driver/mysql"
)

// Each row of the table is complete, and is found by its number and text.
func TestErrorTable(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range serverErrors {
		t.Run(fmt.Sprintf("%d %s", row.number, row.name), func(t *testing.T) {
			key := fmt.Sprint(row.number, row.text)
			if seen[key] {
				t.Error("there is an earlier row for it, which hides this one")
			}
			seen[key] = true
			if len(row.state) != 5 || row.name == "" || row.family == "" || row.source == "" {
				t.Errorf("incomplete: %+v", row)
			}
			err := &mysql.MySQLError{Number: row.number, SQLState: [5]byte([]byte(row.state)), Message: "said " + row.text + " or so"}
			for _, err := range []error{err, fmt.Errorf("job 7: %w", err), errors.Join(errors.New("and"), err)} {
				if got := Classify(err); got != row.class {
					t.Errorf("%v: %s, want %s", err, got, row.class)
				}
			}
			checkFlags(t, row.name, row.class)
		})
	}
}
