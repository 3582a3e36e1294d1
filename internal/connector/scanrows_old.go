//go:build !go1.27

package connector

import "database/sql/driver"

func (r *wrappedRows) forSQL() driver.Rows { return r }
