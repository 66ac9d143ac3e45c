package lines

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// File is one file to read.
type File struct {
	Path string
	Size int64 // bytes on disk

	dir, name string // of a file in a folder
}

// Open opens the file. It fails if the file was in a folder and is a link that leaves the folder. The error is a
// *BrokenError, unless the process has too many open files.
func (f File) Open() (file *os.File, err error) {
	if f.dir != "" {
		file, err = os.OpenInRoot(f.dir, f.name)
	} else {
		file, err = os.Open(f.Path)
	}
	if err != nil && !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
		err = &BrokenError{fmt.Errorf("open: %w", cause(err))}
	}
	return file, err
}

// cause returns the error without the path.
func cause(err error) error {
	if failed := new(fs.PathError); errors.As(err, &failed) {
		return failed.Err
	}
	return err
}

// Name is the name of the file in its folder, with slashes.
func (f File) Name() string { return filepath.ToSlash(f.name) }

// Folder lists the files of a folder.
type Folder struct {
	Files []File // in the order of ComparePaths
	// Other are the names of the files that have other endings.
	Other []string
	// Broken are links that leave the folder or lead nowhere, and what cannot be examined, such as a subfolder without
	// permission.
	Broken []BrokenFile
}

// BrokenFile is a file or a folder that cannot be read.
type BrokenFile struct {
	Name string
	Err  error
}

// InFolder returns the files in a folder and below whose name ends in .ndjson, .jsonl or .json, in any case, and perhaps
// .gz, except hidden ones. Links to files in the folder are followed. It fails only if the folder itself cannot be read.
func InFolder(dir string) (folder Folder, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return folder, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil && name == "." {
			return err
		}
		if err != nil { // of reading a subfolder
			err = fmt.Errorf("the rest of a folder cannot be read: %w", cause(err))
			folder.Broken = append(folder.Broken, BrokenFile{name, err})
			return nil
		}
		hidden := strings.HasPrefix(entry.Name(), ".") && name != "."
		if entry.IsDir() {
			if hidden {
				return fs.SkipDir
			}
			return nil
		}
		if hidden {
			return nil
		}
		if !isResources(name) {
			folder.Other = append(folder.Other, name)
			return nil
		}
		info, err := root.Stat(filepath.FromSlash(name)) // follows a link
		switch {
		case err != nil:
			if err = cause(err); entry.Type()&fs.ModeSymlink != 0 {
				err = fmt.Errorf("a link that leaves the folder or leads nowhere: %w", err)
			}
			folder.Broken = append(folder.Broken, BrokenFile{name, err})
		case info.Mode().IsRegular():
			local := filepath.FromSlash(name)
			folder.Files = append(folder.Files, File{Path: filepath.Join(dir, local), Size: info.Size(), dir: dir, name: local})
		default:
			folder.Other = append(folder.Other, name)
		}
		return nil
	})
	slices.SortStableFunc(folder.Files, func(a, b File) int { return ComparePaths(a.Name(), b.Name()) })
	return folder, err
}

// ComparePaths is the order in which files are read: by path, with slashes, but the folder "deleted" of an export follows
// its neighbours, because it applies to them.
func ComparePaths(a, b string) int {
	key := func(name string) string { return strings.ReplaceAll("/"+name, "/deleted/", "/\U0010ffff/") }
	return strings.Compare(key(a), key(b))
}

// isResources reports whether a file of the name may have resources.
func isResources(name string) bool {
	name = strings.TrimSuffix(strings.ToLower(name), ".gz")
	return strings.HasSuffix(name, ".ndjson") || strings.HasSuffix(name, ".jsonl") || strings.HasSuffix(name, ".json")
}
