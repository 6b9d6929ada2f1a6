// Package migrations embeds the schema: NNNN_what.sql, forward only, each in one
// transaction. A step that went wrong is undone by a new step.
package migrations

import "embed"

// FS holds the migration files.
//
//go:embed *.sql
var FS embed.FS
