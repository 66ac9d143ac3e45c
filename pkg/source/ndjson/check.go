package ndjson

import "context"

// Check reports whether the files are as they were indexed. An error wraps export.ErrUnavailable and stays until the
// folder is opened anew: a process that serves it should then end and be started again.
func (s *Source) Check(ctx context.Context) error {
	for _, f := range s.files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f.unchanged(); err != nil {
			return err
		}
	}
	return nil
}
