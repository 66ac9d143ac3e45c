// Package buildinfo describes the running program.
package buildinfo

import (
	"runtime/debug"
	"strings"
)

// Set by the linker (-X) in builds without a repository, such as those of images. A revision may end with -dirty.
var version, revision string

// Build is the version of a program.
type Build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the repository
	Modified bool   `json:"modified"`           // since the revision
	Go       string `json:"go"`
}

// Of returns the build of this program.
func Of() Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return Build{Version: "unknown"}
	}
	b := Build{Version: info.Main.Version, Go: info.GoVersion}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			b.Revision = setting.Value
		case "vcs.modified":
			b.Modified = setting.Value == "true"
		}
	}
	if version != "" {
		b.Version = version
	}
	if revision != "" {
		b.Revision, b.Modified = strings.CutSuffix(revision, "-dirty")
	}
	return b
}

// String is one line.
func (b Build) String() string {
	parts := []string{b.Version}
	if b.Revision == "" {
		parts = append(parts, "of an unknown revision")
	} else {
		parts = append(parts, b.Revision[:min(len(b.Revision), 12)])
	}
	if b.Modified {
		parts = append(parts, "modified")
	}
	return strings.Join(append(parts, b.Go), " ")
}
