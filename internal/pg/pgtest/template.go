package pgtest

import (
	"fmt"
	"hash/fnv"
	"io/fs"
	"sync"

	"tallystick/migrations"
)

// template is the name of the migrated database for the migrations as they are.
var template = sync.OnceValues(func() (string, error) {
	h := fnv.New64a()
	names, err := fs.Glob(migrations.FS, "*.sql")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		content, err := fs.ReadFile(migrations.FS, name)
		if err != nil {
			return "", fmt.Errorf("read the migration %s: %w", name, err)
		}
		_, _ = fmt.Fprintf(h, "%s %d\n%s", name, len(content), content)
	}
	return fmt.Sprintf("tallystick_template_%x", h.Sum64()), nil
})
