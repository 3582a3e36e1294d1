//go:build go1.27

// scanrows.go passes rows to the program without a copy, where the driver can: since Go
// 1.27 database/sql asks such a driver's rows for each column in place of Next.

package connector

import "database/sql/driver"

// scanRows are wrappedRows of a driver that scans by itself. Only those may have these
// methods, for database/sql calls Next on no others.
type scanRows struct {
	*wrappedRows
	scanner driver.RowsColumnScanner
}

func (r *wrappedRows) forSQL() driver.Rows {
	if scanner, ok := r.Rows.(driver.RowsColumnScanner); ok {
		return &scanRows{r, scanner}
	}
	return r
}

// NextRow is Next: an error that arrives with a row is noted.
func (r *scanRows) NextRow() error {
	err := r.noteError(r.scanner.NextRow())
	r.delivered = r.delivered || err == nil
	return err
}

func (r *scanRows) ScanColumn(ctx driver.ScanContext, i int, dest any) error {
	return r.scanner.ScanColumn(ctx, i, dest)
}
