# find_package(understudy) gives the target understudy::understudy.
include(${CMAKE_CURRENT_LIST_DIR}/understudyTargets.cmake)
