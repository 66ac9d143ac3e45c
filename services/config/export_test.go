package config

import "errors"

// Information returns the text of an error, and whether it is one that was asked for.
func Information(err error) (string, bool) {
	var asked information
	if errors.As(err, &asked) {
		return asked.text, true
	}
	if err == nil {
		return "", false
	}
	return err.Error(), false
}
