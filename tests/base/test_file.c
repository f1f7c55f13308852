/* Files appear whole or not at all, under the name they were asked for, whoever else writes there; and which names are
 * the same place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"

static char folder[] = "/tmp/understudy-file-XXXXXX";

static int make_folder(void **unused) {
  (void)unused;
  return mkdtemp(folder) && chdir(folder) == 0 ? 0 : -1;
}

static int files_left(void) {
  int count = 0;
  DIR *listing = opendir(".");
  for (struct dirent *entry; (entry = readdir(listing));)
    count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
  closedir(listing);
  return count;
}

static int remove_folder(void **unused) {
  (void)unused;
  return files_left() == 0 ? rmdir(folder) : -1;
}

static void write_text(ust_writer *writer, const char *path, const char *text) {
  assert_int_equal(ust_writer_open(writer, path, NULL), UNDERSTUDY_OK);
  ust_writer_write(writer, text, strlen(text));
}

static void expect_text(const char *path, const char *text) {
  char *data;
  size_t size;
  assert_int_equal(ust_file_slurp(path, 1000, &data, &size, NULL), UNDERSTUDY_OK);
  assert_string_equal(data, text);
  ust_free(data);
}

/* What a killed process of the same number left behind is in nobody's way. */
static void leftovers_do_no_harm(void **unused) {
  (void)unused;
  char name[64];
  ust_writer writer;
  for (int i = 0; i < 20; i++) {
    snprintf(name, sizeof name, ".understudy-%d-%d.tmp", (int)getpid(), i);
    assert_int_equal(i % 2 ? mkdir(name, 0700) : fclose(fopen(name, "w")), 0);
  }
  write_text(&writer, "out", "whole");
  assert_int_equal(ust_writer_commit(&writer, NULL), UNDERSTUDY_OK);
  expect_text("out", "whole");
  assert_int_equal(files_left(), 21);
  for (int i = 0; i < 20; i++) {
    snprintf(name, sizeof name, ".understudy-%d-%d.tmp", (int)getpid(), i);
    assert_int_equal(remove(name), 0);
  }
  unlink("out");
}

static void two_writers_of_one_file(void **unused) {
  (void)unused;
  ust_writer one, two, three;
  write_text(&one, "out", "one");
  write_text(&two, "out", "two");
  write_text(&three, "out", "three");
  ust_writer_abandon(&three);
  assert_int_equal(ust_writer_commit(&one, NULL), UNDERSTUDY_OK);
  expect_text("out", "one");
  assert_int_equal(ust_writer_commit(&two, NULL), UNDERSTUDY_OK);
  expect_text("out", "two");
  assert_int_equal(files_left(), 1);
  unlink("out");
}

static void links_and_modes_stay(void **unused) {
  (void)unused;
  ust_writer writer;
  struct stat info;
  write_text(&writer, "out", "old");
  assert_int_equal(ust_writer_commit(&writer, NULL), UNDERSTUDY_OK);
  assert_int_equal(chmod("out", 0600), 0);
  assert_int_equal(symlink("out", "link"), 0);
  write_text(&writer, "link", "new");
  expect_text("out", "old");
  assert_int_equal(ust_writer_commit(&writer, NULL), UNDERSTUDY_OK);
  expect_text("out", "new");
  assert_true(lstat("link", &info) == 0 && S_ISLNK(info.st_mode));
  assert_true(stat("out", &info) == 0 && (info.st_mode & 0777) == 0600);
  assert_int_equal(files_left(), 2);
  unlink("out");
  write_text(&writer, "link", "made"); /* a link to nothing yet */
  assert_int_equal(ust_writer_commit(&writer, NULL), UNDERSTUDY_OK);
  expect_text("out", "made");
  assert_true(lstat("link", &info) == 0 && S_ISLNK(info.st_mode));
  assert_true(lstat("out", &info) == 0 && S_ISREG(info.st_mode));
  assert_int_equal(symlink("circle", "circle"), 0);
  understudy_error err = {0};
  assert_int_equal(ust_writer_open(&writer, "circle", &err), UNDERSTUDY_ERROR_IO);
  assert_string_equal(err.message, "circle: cannot write: Too many levels of symbolic links");
  assert_true(lstat("circle", &info) == 0 && S_ISLNK(info.st_mode));
  unlink("circle");
  unlink("link");
  unlink("out");
}

/* A file its owner has made read-only is kept, though its folder would let another take its name. (Root may write
 * everything, so it becomes somebody else meanwhile.) */
static void protected_files_stay(void **unused) {
  (void)unused;
  ust_writer writer;
  understudy_error err;
  const uid_t user = geteuid();
  write_text(&writer, "out", "kept");
  assert_int_equal(ust_writer_commit(&writer, NULL), UNDERSTUDY_OK);
  assert_int_equal(chmod("out", 0444), 0);
  assert_int_equal(chmod(".", 0777), 0);
  if (user == 0) assert_int_equal(seteuid(65534), 0);
  const understudy_status opened = ust_writer_open(&writer, "out", &err), checked = ust_writer_check("out", NULL),
                          beside = ust_writer_check("other", NULL);
  if (user == 0) assert_int_equal(seteuid(0), 0);
  assert_int_equal(opened, UNDERSTUDY_ERROR_IO);
  assert_string_equal(err.message, "out: cannot write: Permission denied");
  assert_int_equal(checked, UNDERSTUDY_ERROR_IO);
  assert_int_equal(beside, UNDERSTUDY_OK);
  expect_text("out", "kept");
  assert_int_equal(files_left(), 1);
  unlink("out");
}

/* Told when a file is opened, not when all is written. */
static void impossible_names(void **unused) {
  (void)unused;
  char name[300];
  ust_writer writer;
  understudy_error err;
  memset(name, 'n', sizeof name);
  name[256] = 0;
  assert_int_equal(ust_writer_open(&writer, name, &err), UNDERSTUDY_ERROR_IO);
  assert_non_null(strstr(err.message, "too long"));
  name[255] = 0;
  write_text(&writer, name, "x");
  assert_int_equal(ust_writer_commit(&writer, NULL), UNDERSTUDY_OK);
  expect_text(name, "x");
  unlink(name);
  assert_int_equal(ust_writer_open(&writer, "absent/out", &err), UNDERSTUDY_ERROR_IO);
  assert_int_equal(ust_writer_open(&writer, "-", &err), UNDERSTUDY_ERROR_ARGUMENT);
  write_text(&writer, "/dev/full", "x");
  assert_int_equal(ust_writer_commit(&writer, &err), UNDERSTUDY_ERROR_IO);
  assert_non_null(strstr(err.message, "/dev/full: cannot write"));
}

static void places(void **unused) {
  (void)unused;
  char whole[128];
  snprintf(whole, sizeof whole, "%s/new", folder);
  assert_true(ust_same_place("new", "./new") && ust_same_place(whole, "new"));
  assert_false(ust_same_place("new", "old") || ust_same_place("new", "absent/new"));
  assert_string_equal(ust_name_in(whole, "."), "new");
  assert_string_equal(ust_name_in("./new", folder), "new");
  assert_null(ust_name_in("new", "/tmp"));
  assert_null(ust_name_in("new", "absent"));
  assert_int_equal(fclose(fopen("new", "w")), 0);
  assert_int_equal(link("new", "other"), 0);
  assert_true(ust_same_file("new", "other") && ust_same_place("new", "other"));
  unlink("new");
  unlink("other");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(leftovers_do_no_harm), cmocka_unit_test(two_writers_of_one_file),
      cmocka_unit_test(links_and_modes_stay), cmocka_unit_test(protected_files_stay),
      cmocka_unit_test(impossible_names),     cmocka_unit_test(places),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
