// Package mysql is what the documentation uses of GORM's driver 1.6, so that its blocks
// compile without it.
package mysql

import "gorm.io/gorm"

type Config struct{ Conn gorm.ConnPool }

func New(config Config) gorm.Dialector { return nil }
